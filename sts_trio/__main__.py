"""The `sts-trio` command."""

from __future__ import annotations

import click

from . import __version__
from .cli.dub import dub
from .cli.models import models
from .cli.serve import serve


@click.group()
@click.version_option(__version__, prog_name="sts-trio")
def main() -> None:
    """Dubs live broadcasts: speech in, speech in another language out, in order and fitted to its slot."""


main.add_command(serve)
main.add_command(dub)
main.add_command(models)

if __name__ == "__main__":
    main()
