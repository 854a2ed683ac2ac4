"""The packages of `package.json`, installed into `build/npm`, for the tests that need `socket.io-client`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

NPM: Final = Path(__file__).parents[2] / "build" / "npm"
"""A program in this folder finds the packages that are installed there."""

INSTALL_TIMEOUT_S: Final = 180

MISSING: Final = (
    None
    if shutil.which("node") and shutil.which("npm")
    else "socket.io-client needs node and npm (Debian: apt-get install nodejs npm)"
)
"""Why programs cannot run; None where they can."""


def install() -> Path:
    """Installs what the lock file names, unless it is there already; the folder to put programs in."""
    here = Path(__file__).parent
    lock, installed = here / "package-lock.json", NPM / "node_modules" / ".installed"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        NPM.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "package.json", NPM)
        shutil.copy(lock, NPM)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=NPM, check=True, timeout=INSTALL_TIMEOUT_S)
        shutil.copy(lock, installed)
    return NPM
