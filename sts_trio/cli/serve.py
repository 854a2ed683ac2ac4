"""`sts-trio serve`: run the server until it is told to stop."""

from __future__ import annotations

import sys

import click
import trio

from ..config import ConfigError
from . import cannot_run, first_error, load_settings, profile_option


@click.command()
@profile_option
def serve(profile: str | None) -> None:
    """Dub the streams of media-service workers.

    Configured by environment variables; the README lists them. SIGTERM finishes what is in flight and exits 0.
    """
    from ..engines.base import EngineLost, EngineUnavailable  # here: child processes of engines import this module, too
    from ..observe import logs
    from ..server import app

    settings = load_settings(profile)
    logs.configure(settings.log_level, settings.log_format)
    in_order, trouble = False, ""
    try:
        in_order = trio.run(app.serve, settings)
    except* ConfigError as unusable:
        trouble = first_error(unusable)
    except* EngineUnavailable as unavailable:
        trouble = cannot_run(unavailable, profile)
    except* EngineLost as lost:
        trouble = f"{first_error(lost)}: start the server again"
    except* OSError as unusable:
        trouble = f"cannot start: {first_error(unusable)}"
    if trouble:  # raised here, since what an except* clause raises comes out in a group
        raise click.ClickException(trouble)
    sys.exit(0 if in_order else 1)
