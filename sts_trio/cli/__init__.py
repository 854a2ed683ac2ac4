"""The command line: `sts-trio serve`, `dub`, `models`, `doctor` and `voices`."""

from __future__ import annotations

from typing import Final

import click

from ..config import PROFILES, ConfigError, Settings

profile_option: Final = click.option(
    "--profile", type=click.Choice(list(PROFILES)), help="Engines, where the environment names no others."
)


def load_settings(profile: str | None) -> Settings:
    """The configuration, or what is wrong with it as what a person is told."""
    try:
        return Settings.load(profile=profile)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def first_error(group: BaseExceptionGroup[BaseException]) -> str:
    """What to tell a person of a group: the first error in it, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
