"""`sts-trio voices`: the voice profiles that streams can ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from . import load_settings, profile_option

if TYPE_CHECKING:
    from ..engines.base import Voice


@click.command()
@profile_option
@click.option("--language", metavar="LANGUAGE", help="Only those that speak it, e.g. es.")
@click.option("--json", "as_json", is_flag=True, help="Print the same for scripts.")
def voices(profile: str | None, language: str | None, as_json: bool) -> None:
    """Show the voices of the configured TTS_MODEL, and which languages they speak.

    A stream asks for one by its id in `voice_profile`.
    """
    from ..engines.base import EngineUnavailable
    from ..engines.registry import build_tts
    from ..observe import logs

    settings = load_settings(profile)
    logs.configure("ERROR", "console")
    try:
        engine = build_tts(settings)
    except EngineUnavailable as error:
        raise click.ClickException(str(error)) from None
    if language is not None and not engine.supports(language):
        raise click.ClickException(f"{engine.name} does not speak {language}")
    shown = [voice for voice in engine.voices() if language is None or engine.has_voice(voice.id, language)]
    if as_json:
        _print_json(engine.name, shown)
    else:
        _print_table(engine.name, shown)


def _print_json(engine: str, shown: Sequence[Voice]) -> None:
    import orjson
    from attrs import asdict

    body = {"engine": engine, "voices": [asdict(voice) for voice in shown]}
    click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2))


def _print_table(engine: str, shown: Sequence[Voice]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=engine, show_lines=True)
    table.add_column("voice", overflow="fold")
    table.add_column("languages", overflow="fold")
    table.add_column("description", overflow="fold")
    for voice in shown:
        table.add_row(Text(voice.id), Text(" ".join(voice.languages)), Text(voice.description))
    Console(markup=False, emoji=False, highlight=False).print(table)
