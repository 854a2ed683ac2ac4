"""The `sts-trio` command."""

from __future__ import annotations

import click

from . import __version__
from .cli.doctor import doctor
from .cli.dub import dub
from .cli.models import models
from .cli.serve import serve
from .cli.simulate import simulate
from .cli.voices import voices


@click.group()
@click.version_option(__version__, prog_name="sts-trio")
def main() -> None:
    """Dubs live broadcasts: speech in, speech in another language out, in order and fitted to its slot."""


for command in (serve, dub, models, voices, doctor, simulate):
    main.add_command(command)

if __name__ == "__main__":
    main()
