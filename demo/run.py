"""The demo: a news programme is spoken, a real server started, and the programme dubbed by a real worker.

Leaves source.wav, source.txt (what is said, where that is known), dubbed.wav, subtitles.vtt, report.json and server.log
in `--out`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from sts_trio.client.media import Media, MediaError, Pcm, read_media, write_media

PROGRAMME = Path(__file__).with_name("programme.txt")
VOICE = "rms"  # of flite's voices the one that speech recognition understands best
PAUSE_S = 0.3  # between sentences, as a newsreader makes them

SPEAK_TIMEOUT_S = 30
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 45  # over the server's own DRAIN_TIMEOUT_S


@click.command()
@click.option("--media", type=click.Path(path_type=Path), help="Dub this file's sound instead of the news programme.")
@click.option("--to", default="es", show_default=True, help="Language to dub into.")
@click.option("--out", default="build/demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
def main(media: Path | None, to: str, out: Path) -> None:
    """Dub half a minute of English news, or a file."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    source = out / "source.wav"
    try:
        if media is None:
            speak(PROGRAMME, source)
            shutil.copyfile(PROGRAMME, out / "source.txt")
        else:
            programme = read_media(media)
            write_media(source, programme.samples, programme)
            (out / "source.txt").unlink(missing_ok=True)
    except MediaError as error:
        raise click.ClickException(str(error)) from None
    with server(out / "server.log") as url:
        arguments = ["dub", str(source), "-o", str(out / "dubbed.wav"), "--to", to, "--url", url]
        code = subprocess.run([sys.executable, "-m", "sts_trio", *arguments], check=False).returncode
    click.echo(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    click.echo(f"the demo took {time.monotonic() - began:.0f} s")
    sys.exit(code)


def speak(text: Path, sound: Path) -> None:
    """Have flite read `text`, a sentence or two per line, with a pause after each line."""
    if shutil.which("flite") is None:
        raise click.ClickException("the `flite` command is missing: apt install flite")
    spoken: list[Pcm] = []
    rate_hz = 0
    line_sound = sound.with_name("line.wav")
    try:
        for line in text.read_text(encoding="utf-8").splitlines():
            if line:
                command = ["flite", "-voice", VOICE, "-t", line, "-o", str(line_sound)]
                subprocess.run(command, check=True, timeout=SPEAK_TIMEOUT_S)
                said = read_media(line_sound)
                rate_hz = said.rate_hz
                spoken += [np.array(said.samples), np.zeros((round(PAUSE_S * rate_hz), 1), np.int16)]
    finally:
        line_sound.unlink(missing_ok=True)
    samples = np.concatenate(spoken)
    write_media(sound, samples, Media(sound, samples, rate_hz))


@contextmanager
def server(log: Path) -> Iterator[str]:
    """A server process with the embedded engines, healthy; its URL. It must stop in order at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"STS_HOST": "127.0.0.1", "STS_PORT": str(port), "METRICS_PORT": ""}
    with log.open("wb") as lines:
        command = [sys.executable, "-m", "sts_trio", "serve", "--profile", "embedded"]
        process = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(url, process, log)
            yield url
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(STOP_TIMEOUT_S)) != 0:
                raise click.ClickException(f"the server ended with exit status {code}; see {log}")
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise click.ClickException(f"the server did not start:\n{log.read_text(errors='replace')[-2_000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass  # not listening yet, or still loading its models (503)
        time.sleep(0.1)
    raise click.ClickException(f"the server was not healthy within {START_TIMEOUT_S} s; see {log}")


if __name__ == "__main__":
    main()
