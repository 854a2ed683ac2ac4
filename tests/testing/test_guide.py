"""docs/testing.md is true: its examples run, its commands exist, and its table of rules names every rule there is."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sts_trio.cli.simulate import simulate
from sts_trio.testing import virtual
from sts_trio.testing.ledger import Ledger
from sts_trio.testing.simulation import actor, processes, run, trace
from sts_trio.testing.terms import Terms

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testing.md").read_text()
EXAMPLES = dict(re.findall(r"^```python (test_\w+\.py)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
HOMES = {
    "Ledger": Ledger,
    "Terms": Terms,
    "Actor": actor.Actor,
    "_World": run._World,
    "Trace": trace.Trace,
    "VirtualServer": virtual.VirtualServer,
}


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    assert len(EXAMPLES) == TEXT.count("```python") == 6
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^8 passed", done.stdout, re.MULTILINE), done.stdout


def test_the_commands_exist() -> None:
    commands = re.findall(r"^sts-trio simulate (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        simulate.make_context("simulate", shlex.split(command, comments=True))
    for path in re.findall(r"(?:tests|benchmarks|sts_trio)/[\w/]+(?:\.py)?", TEXT):
        assert (ROOT / path).exists(), path


def test_each_rule_is_in_the_table() -> None:
    rows = re.findall(r"\| `([\w.]+)` \|$", TEXT, re.MULTILINE)
    for row in rows:
        home, _, name = row.rpartition(".")
        assert name in dir(processes) if not home else name in _names(HOMES[home]), row
    rules = {name for name, rule in inspect.getmembers(Ledger, inspect.isfunction) if _judges(rule)}
    assert {f"Ledger.{name}" for name in rules} <= set(rows)


def _names(cls: type) -> set[str]:
    return set(dir(cls)) | set(inspect.get_annotations(cls))


def _judges(function: object) -> bool:
    return "self._violated(" in inspect.getsource(function)  # type: ignore[arg-type]
