"""`sts-trio models`: what can be downloaded, downloading it, and seeing that it is still what was downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from . import load_settings, profile_option

if TYPE_CHECKING:
    from ..engines.catalogue import DownloadableModel
    from ..engines.download import OnProgress


@click.group()
def models() -> None:
    """Models that are downloaded: the sizes of Whisper, and XTTS v2. They lie in MODELS_DIR.

    `pull` downloads what the configuration names from the Hugging Face hub (HF_ENDPOINT, HF_TOKEN); afterwards nothing
    is asked of it any more.
    """


@models.command("list")
@profile_option
def list_models(profile: str | None) -> None:
    """Show which models there are to download, and which are here."""
    from rich.console import Console
    from rich.table import Table

    from ..engines.catalogue import MODELS, configured_models, presence
    from ..engines.download import gigabytes

    settings = load_settings(profile)
    used = {model.name: variable for variable, model in configured_models(settings).items()}
    table = Table(title=f"MODELS_DIR={settings.models_dir}")
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for heading in ("here", "used by", "licence"):
        table.add_column(heading, overflow="fold")
    for model in MODELS.values():
        state = presence(model, settings.models_dir)
        size = gigabytes(model.megabytes * 1_000_000)
        table.add_row(model.name, size, str(state), used.get(model.name, ""), model.licence)
    Console(markup=False, emoji=False, highlight=False).print(table)


@models.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--force", is_flag=True, help="Download it all again, and replace what is there.")
@profile_option
def pull(names: tuple[str, ...], force: bool, profile: str | None) -> None:
    """Download models, by default those that ASR_MODEL and TTS_MODEL name.

    What is there and unchanged is not downloaded again, and what was interrupted goes on where it stopped.
    """
    from ..engines.catalogue import configured_models
    from ..engines.download import DownloadFailed, gigabytes
    from ..engines.download import pull as download

    settings = load_settings(profile)
    wanted = _named(names) if names else list(configured_models(settings).values())
    if not wanted:
        click.echo(f"nothing to download: ASR_MODEL={settings.asr_model}, TTS_MODEL={settings.tts_model}")
    for model in wanted:
        if model.must_agree and not settings.coqui_tos_agreed:
            raise click.ClickException(
                f"the licence of {model.name} is the {model.licence}\n"
                "Read it; if you accept it, say so with COQUI_TOS_AGREED=1 and call this again. Nothing was downloaded."
            )
    for model in wanted:
        folder = settings.models_dir / model.name
        click.echo(f"{model.name}: {model.repository}, {gigabytes(model.megabytes * 1_000_000)}, {model.licence}")
        try:
            with _progress(model.name) as on_progress:
                new = download(model, settings.models_dir, force=force, on_progress=on_progress)
        except DownloadFailed as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException(
                f"interrupted: `sts-trio models pull {model.name}` goes on where this stopped"
            ) from None
        click.echo(f"{model.name}: {'complete and verified' if new else 'already complete'} in {folder}")


@models.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@profile_option
def check(names: tuple[str, ...], profile: str | None) -> None:
    """Compare each file with what was downloaded; asks no hub.

    By default all models that are here, and those that ASR_MODEL and TTS_MODEL name. Exits with 1 if one differs.
    """
    from ..engines.catalogue import MODELS, Presence, configured_models, how_to_pull, presence
    from ..engines.download import check as differences

    settings = load_settings(profile)
    wanted = _named(names)
    if not names:
        used = configured_models(settings).values()
        present = (model for model in MODELS.values() if presence(model, settings.models_dir) is not Presence.ABSENT)
        wanted = list({model.name: model for model in (*used, *present)}.values())
    if not wanted:
        click.echo(f"no model in {settings.models_dir}")
    repairs = []
    for model in wanted:
        problems = differences(model, settings.models_dir)
        for problem in problems:
            click.echo(f"{model.name}: {problem}")
        if problems:
            repairs.append(how_to_pull(model, settings.models_dir / model.name))
        else:
            click.echo(f"{model.name}: complete and unchanged")
    if repairs:
        raise click.ClickException(f"this brings what is missing: {', '.join(repairs)}")


def _named(names: Iterable[str]) -> list[DownloadableModel]:
    from ..engines.catalogue import MODELS

    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise click.ClickException(f"there is no model {unknown[0]}; there are {', '.join(MODELS)}")
    return [MODELS[name] for name in dict.fromkeys(names)]


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal, and nothing anywhere else."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(f"{name} {{task.description}}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # No thread that refreshes: the next megabyte does.
    progress = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=False,
        disable=not console.is_terminal,
    )  # fmt: skip
    with progress:
        task = progress.add_task("", total=None)

        def show(file: str, done: int, total: int) -> None:
            progress.update(task, description=file, completed=done, total=total, refresh=True)

        yield show
