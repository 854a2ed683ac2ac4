"""Models from the Hugging Face hub to the folder of models: complete and verified, or not there at all.

A model is downloaded to a folder beside its place, under a hidden name with the commit in it, and gets its place by a
rename when every file is what the hub says it is and the manifest is written. What an interrupted download leaves is
taken up by the next one, if that finds the same commit. No two downloads write to one folder of models at a time.

The hub's own client (``huggingface_hub``) does the talking and follows its variables: HF_ENDPOINT, HF_TOKEN, proxies.
Files are fetched one by one with its `http_get`, which can go on where it stopped; its `hf_hub_download` starts again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import frozen

from .catalogue import DownloadableModel, Presence, presence
from .manifest import FileRecord, Manifest, ManifestError, sha256_of

ANSWER_TIMEOUT_S: Final = 15.0
"""What the hub is given to say what a model consists of. Its client has a limit of its own for files."""

CHUNK_BYTES: Final = 2**20
"""Written at once, instead of the client's 10 MB: on a slow line that is long without progress, and lost with it."""

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Is told the file, and of the whole model the bytes that are here and those there are."""

_NO_SPACE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DownloadFailed(Exception):
    """A model could not be downloaded; the message says why and what would help, in one line."""


@frozen
class RemoteFile:
    """What the hub says about a file: large ones (LFS) have a SHA-256, others the name that git gives their content."""

    size: int
    sha256: str | None
    git_sha1: str | None


@frozen
class Snapshot:
    """The files of a model at one commit, by name."""

    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


# -------------------------------------------------------------------------------------------- the folder of models


def pull(
    model: DownloadableModel, models_dir: Path, *, force: bool = False, on_progress: OnProgress = lambda *_: None
) -> bool:
    """Bring a model to its place in `models_dir`, unless it is there, complete and unchanged.

    Blocks; an interrupt (Ctrl-C) leaves what the next call goes on with. Whether the user has to agree to a licence is
    for the caller to ask.

    Args:
        force: download it all again, and replace whatever has its place.

    Returns:
        Whether there was anything to download.

    Raises:
        DownloadFailed
    """
    folder = models_dir / model.name
    with _explained(models_dir, model), _alone(models_dir):
        if not force and presence(model, models_dir) is not Presence.ABSENT:
            if not check(model, models_dir):
                return False
            if not (folder / "manifest.json").exists():
                raise DownloadFailed(
                    f"{folder} was not made by `sts-trio models pull`: it has no manifest.json, and would be replaced. "
                    "Move it away, or replace it with --force"
                )
        hub = _hub()
        snapshot = _ask(hub, model)
        partial = _prepare(folder, snapshot.commit, afresh=force)
        _check_space(snapshot, partial)
        records: dict[str, FileRecord] = {}
        for name, file in snapshot.files.items():
            done = sum(record.size for record in records.values())

            def note(size: int, name: str = name, done: int = done) -> None:
                on_progress(name, done + size, snapshot.size)

            records[name] = _fetch(hub, model, snapshot.commit, partial / name, file, note)
        Manifest(model.repository, snapshot.commit, records).write(partial)
        _put_in_place(partial, folder)
    return True


def check(model: DownloadableModel, models_dir: Path) -> list[str]:
    """What is wrong with a downloaded model, in words. Reads every file; asks no hub."""
    folder = models_dir / model.name
    if presence(model, models_dir) is Presence.ABSENT:
        return [f"{folder} is not there"]
    try:
        manifest = Manifest.read(folder)
    except ManifestError as error:
        return [str(error)]
    if manifest is None:
        return [f"{folder} has no manifest.json: it was not made by `sts-trio models pull` and cannot be checked"]
    return list(manifest.differences(folder))


@contextmanager
def _alone(models_dir: Path) -> Iterator[None]:
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed(f"another `sts-trio models pull` is writing to {models_dir}: wait for it") from None
        except OSError:
            pass  # this file system has no locks: should two downloads meet, the hashes tell
        yield


def _prepare(folder: Path, commit: str, *, afresh: bool) -> Path:
    """The folder to download to, and nothing else left of earlier downloads of this model."""
    partial = folder.with_name(f".{folder.name}@{commit}.incomplete")
    for left in folder.parent.glob(f".{folder.name}@*.incomplete"):
        if afresh or left != partial:
            _remove(left)
    partial.mkdir(exist_ok=True)
    return partial


def _check_space(snapshot: Snapshot, partial: Path) -> None:
    needed = snapshot.size - sum(path.stat().st_size for path in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise DownloadFailed(
            f"{gigabytes(needed)} are still to be downloaded, and {gigabytes(free)} are free in {partial.parent}: "
            "free some space, or set MODELS_DIR to another disk"
        )


def _put_in_place(partial: Path, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        old = partial.with_name(f".{folder.name}@replaced.incomplete")
        folder.rename(old)
        partial.rename(folder)
        _remove(old)
    else:
        partial.rename(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# -------------------------------------------------------------------------------------------- the hub


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadFailed(
            "downloading needs the Python package huggingface_hub: pip install 'sts-trio[asr]' or 'sts-trio[tts]'"
        ) from None
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise DownloadFailed(f"HF_ENDPOINT is no URL: {error}") from None
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()  # there is one of our own, of the whole model
    logging.set_verbosity_error()  # its retries; what comes of them is told
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    return huggingface_hub


def _ask(hub: Any, model: DownloadableModel) -> Snapshot:
    """What the model consists of at present."""
    try:
        info = hub.HfApi().model_info(model.repository, files_metadata=True, timeout=ANSWER_TIMEOUT_S)
        files = {
            sibling.rfilename: RemoteFile(
                size=int(sibling.size),
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
                git_sha1=sibling.blob_id,
            )
            for sibling in info.siblings
            # A name with a slash could lead anywhere, and no model of ours has one.
            if "/" not in sibling.rfilename and any(fnmatch(sibling.rfilename, each) for each in model.patterns)
        }
        commit = re.fullmatch(r"[0-9a-f]{40}", info.sha)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, OSError):
            raise  # the hub's answer to a bad request is a ValueError, too
        raise DownloadFailed(f"what answers at {_endpoint()} is no Hugging Face hub: see HF_ENDPOINT") from error
    missing = [name for name in model.required if name not in files]
    if commit is None or missing:
        raise DownloadFailed(
            f"{model.repository} at {_endpoint()} has no {missing[0] if missing else 'commit'}: see HF_ENDPOINT"
        )
    return Snapshot(commit.group(), files)


def _fetch(
    hub: Any, model: DownloadableModel, commit: str, path: Path, file: RemoteFile, note: Callable[[int], None]
) -> FileRecord:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _Watched(io.FileIO(path, "ab"), note) as out:
        if out.tell() > file.size:
            out.seek(0)
            out.truncate()
        if out.tell() < file.size:
            http_get(
                hub.hf_hub_url(model.repository, path.name, revision=commit),
                out,
                resume_size=out.tell(),
                # Of a compressed body no second half could be asked for.
                headers={**build_hf_headers(library_name="sts-trio"), "Accept-Encoding": "identity"},
                expected_size=file.size,
            )
    sha256 = sha256_of(path)
    if file.sha256 is not None:
        genuine = sha256 == file.sha256
    else:
        genuine = path.stat().st_size == file.size and file.git_sha1 in (None, _git_sha1(path))
    if not genuine:
        path.unlink()
        raise DownloadFailed(
            f"{path.name} of {model.name} arrived with another content than {_endpoint()} says it has, "
            "and was dropped: try again; if it stays so, a proxy or mirror (HF_ENDPOINT) changes it"
        )
    note(file.size)
    return FileRecord(file.size, sha256)


class _Watched(io.BufferedWriter):
    """A file that tells how long it is after each write."""

    def __init__(self, raw: io.FileIO, note: Callable[[int], None]) -> None:
        super().__init__(raw)
        self._note = note

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self._note(self.tell())
        return written


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _explained(models_dir: Path, model: DownloadableModel) -> Iterator[None]:
    """What the hub's client and the disk raise, as what a person is told of it."""
    try:
        yield
    except DownloadFailed:
        raise
    except Exception as error:
        told = _tell(error, models_dir, model)
        if told is None:
            raise
        raise DownloadFailed(f"{model.name}: {told}") from error


def _tell(error: Exception, models_dir: Path, model: DownloadableModel) -> str | None:
    """None for what nobody expects."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return (
            f"cannot write to {models_dir}: {os.strerror(error.errno)}: free some space, or set MODELS_DIR to another "
            "disk; the next pull goes on from here"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}: MODELS_DIR must be a folder that this user may write to"
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: a download needs it unset"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        answered = f"{_endpoint()} answered {status} for {model.repository}"
        if status in (401, 403):
            return f"{answered}: see that HF_TOKEN is set and valid, and that its account may read the repository"
        if status == 404:
            return f"{answered}: see HF_ENDPOINT, which may be a mirror that lacks it"
        return f"{answered}: try again later; the next pull goes on from here"
    if isinstance(error, (HTTPError, OSError)):  # of the client's HTTP library, of which it has had three
        return (
            f"the download from {_endpoint()} failed: {_first_line(error)}: see the network, HTTPS_PROXY and "
            "HF_ENDPOINT; the next pull goes on from here"
        )
    return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def gigabytes(count: int) -> str:
    """As disks and downloads are sized: 1 GB is 1000 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
