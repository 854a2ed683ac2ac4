"""What a downloaded model consists of, written beside it, so that it can be checked without the hub it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import cattrs
import orjson
from attrs import asdict, frozen

MANIFEST: Final = "manifest.json"
"""Its name in the folder of a model. It is written last: where it is, the download was complete."""

_structure: Final = cattrs.Converter(detailed_validation=False).structure


class ManifestError(Exception):
    """A manifest cannot be read; the message names the file."""


@frozen
class FileRecord:
    """One file as it was downloaded: size in bytes, SHA-256 in hexadecimal."""

    size: int
    sha256: str


@frozen
class Manifest:
    """Where a model came from, and its files by name.

    Attributes:
        revision: the commit of the repository.
    """

    repository: str
    revision: str
    files: Mapping[str, FileRecord]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """That of a model's folder; None where it has none.

        Raises:
            ManifestError: it cannot be read, or is none.
        """
        path = folder / MANIFEST
        try:
            manifest = _structure(orjson.loads(path.read_bytes()), cls)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ManifestError(f"{path} is no manifest of a model") from None
        if not manifest.files:
            raise ManifestError(f"{path} names no file")
        return manifest

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def misfits(self, folder: Path) -> Iterator[str]:
        """What is missing or has another size, in words. Takes no time: nothing is read."""
        for name, record in self.files.items():
            path = folder / name
            if not path.is_file():
                yield f"{path} is missing"
            elif (size := path.stat().st_size) != record.size:
                yield f"{path} has {size} bytes and should have {record.size}"

    def differences(self, folder: Path) -> Iterator[str]:
        """As `misfits`, and what has another content: reads every file, a second or two per gigabyte."""
        for name, record in self.files.items():
            misfits = list(Manifest(self.repository, self.revision, {name: record}).misfits(folder))
            yield from misfits
            if misfits:
                continue
            path = folder / name
            try:
                changed = sha256_of(path) != record.sha256
            except OSError as error:
                yield f"{path} cannot be read: {error.strerror}"
            else:
                if changed:
                    yield f"{path} differs from what was downloaded"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
