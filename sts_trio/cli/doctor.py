"""`sts-trio doctor`: what is installed, reachable and missing for the configured engines, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..config import ConfigError, Settings
from . import profile_option

if TYPE_CHECKING:
    from .checks import Finding


@click.command()
@profile_option
@click.option("--load", is_flag=True, help="Load and warm an instance of each engine, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the same for scripts.")
def doctor(profile: str | None, load: bool, as_json: bool) -> None:
    """See whether the server could run here as it is configured, and what would help where it could not.

    Looks at commands, packages, keys, models, GPU, memory, disk, ports and limits. Exits with 1 if something is
    missing; what is only a warning runs, but probably not as wanted.
    """
    from ..observe import logs
    from .checks import Examination, Finding, State

    logs.configure("ERROR", "console")
    try:
        settings = Settings.load(profile=profile)
    except ConfigError as error:
        findings = [Finding("configuration", State.MISSING, str(error))]
    else:
        findings = list(Examination(settings, load=load).run())
    missing = sum(finding.state is State.MISSING for finding in findings)
    if as_json:
        _print_json(findings, ok=not missing)
    else:
        _print_table(findings)
    sys.exit(1 if missing else 0)


def _print_json(findings: Sequence[Finding], *, ok: bool) -> None:
    import orjson
    from attrs import asdict

    body = {"ok": ok, "checks": [asdict(finding) for finding in findings]}
    click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2))


def _print_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .checks import State

    styles = {State.OK: "green", State.WARNING: "yellow", State.MISSING: "bold red"}
    table = Table(show_lines=True)
    table.add_column("checked", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found, and what would help", overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n-> {finding.remedy}", "bold")
        table.add_row(Text(finding.subject), Text(finding.state, styles[finding.state]), found)
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table)
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
