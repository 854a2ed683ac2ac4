"""The command line: `sts-trio serve`, `dub`, `models`, `doctor`, `voices` and `simulate`."""

from __future__ import annotations

from typing import Final

import click

from ..config import PROFILES, ConfigError, Settings
from ..groups import innermost

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
    """What to tell a person of a group."""
    return str(innermost(group))


def cannot_run(error: BaseExceptionGroup[BaseException], profile: str | None) -> str:
    """What to tell a person whose engines cannot run here, and where to look further."""
    doctor = f"sts-trio doctor --profile {profile}" if profile else "sts-trio doctor"
    told = f"{first_error(error)}\n`{doctor}` shows all that is missing."
    return told if profile else f"{told} `--profile embedded` has engines that need no key, model or GPU."
