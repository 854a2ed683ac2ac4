"""The demo: a news programme is spoken, a real server started, and the programme dubbed by a real worker.

Leaves source.wav, source.txt (what is said, where that is known), dubbed.wav, subtitles.vtt, report.json and server.log
in `--out`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

from sts_trio.client.media import Media, MediaError, Pcm, read_media, write_media
from sts_trio.config import PROFILES
from sts_trio.testing.process import ServerProcessError, free_port, server_process

PROGRAMME = Path(__file__).with_name("programme.txt")
VOICE = "rms"  # of flite's voices the one that speech recognition understands best
PAUSE_S = 0.3  # between sentences, as a newsreader makes them

SPEAK_TIMEOUT_S = 30


@click.command()
@click.option("--media", type=click.Path(path_type=Path), help="Dub this file's sound instead of the news programme.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="embedded", show_default=True, help="Engines.")
@click.option("--to", default="es", show_default=True, help="Language to dub into.")
@click.option("--out", default="build/demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
def main(media: Path | None, profile: str, to: str, out: Path) -> None:
    """Dub half a minute of English news, or a file."""
    if profile != "embedded":
        check(profile)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    source = out / "source.wav"
    for old in ("dubbed.wav", "subtitles.vtt", "report.json"):  # of an earlier run, which this one may not replace
        (out / old).unlink(missing_ok=True)
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
    try:
        with server_process(out / "server.log", profile=profile) as server:
            arguments = ["dub", str(source), "-o", str(out / "dubbed.wav"), "--to", to, "--url", server.url]
            code = subprocess.run([sys.executable, "-m", "sts_trio", *arguments], check=False).returncode
    except ServerProcessError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    click.echo(f"the demo took {time.monotonic() - began:.0f} s")
    sys.exit(code)


def check(profile: str) -> None:
    """End here with a table of what the engines of `profile` have and miss, where they miss anything."""
    port = str(free_port())  # as the demo's server will have one, whoever listens on the configured one
    doctor = [sys.executable, "-m", "sts_trio", "doctor", "--profile", profile]
    if subprocess.run(doctor, env=os.environ | {"STS_PORT": port, "METRICS_PORT": ""}, check=False).returncode:
        raise click.ClickException(f"the {profile} profile cannot run here yet: the table says what is missing")


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


if __name__ == "__main__":
    main()
