"""`sts-trio dub`: dub a media file."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import trio
from attrs import evolve, frozen

from ..config import Settings
from . import cannot_run, load_settings, profile_option

if TYPE_CHECKING:
    from protocol.dubbing import FragmentProcessed, StreamConfig

    from ..client.connection import DubbingError
    from ..client.cut import Slot
    from ..client.media import Media
    from ..client.programme import Dub
    from ..engines.suite import Models

T = TypeVar("T")

_ROWS = 40  # of the table: a longer programme's shows only what is not a success


@frozen
class Options:
    """What the command line asks for."""

    source: Path
    output: Path
    url: str | None
    profile: str | None
    config: StreamConfig
    cut: str
    token: str | None
    max_inflight: int | None
    timeout_ms: int


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The dubbed file, by its ending.")
@click.option("--to", "target", required=True, metavar="LANGUAGE", help="Language to dub into, e.g. es.")
@click.option("--from", "spoken", default="en", show_default=True, metavar="LANGUAGE", help="Language that is spoken.")
@click.option("--url", help="A running server, e.g. http://localhost:8000; without it one is started for the file.")
@profile_option
@click.option("--voice", default="default", show_default=True, help="Voice profile.")
@click.option(
    "--format",
    type=click.Choice(["pcm_s16le", "wav", "m4a"]),
    default="pcm_s16le",
    show_default=True,
    help="How fragments travel.",
)
@click.option(
    "--fragment-ms", type=click.IntRange(100, 60_000), default=6_000, show_default=True, help="Length of a fragment."
)
@click.option(
    "--cut",
    type=click.Choice(["pauses", "fixed"]),
    default="pauses",
    show_default=True,
    help="pauses: at the quietest moment within a second of the fragment length; fixed: as live workers do.",
)
@click.option("--token", envvar="STS_API_KEY", show_envvar=True, help="What a server with STS_API_KEY asks for.")
@click.option("--max-inflight", type=click.IntRange(1, 10), help="Fragments on their way at once.")
@click.option(
    "--timeout-ms",
    type=click.IntRange(1_000, 30_000),
    default=30_000,
    show_default=True,
    help="Deadline of each fragment; by default the longest there is, since a file, unlike a broadcast, can wait.",
)
def dub(
    source: Path,
    output: Path,
    target: str,
    spoken: str,
    url: str | None,
    profile: str | None,
    voice: str,
    format: str,
    fragment_ms: int,
    cut: str,
    token: str | None,
    max_inflight: int | None,
    timeout_ms: int,
) -> None:
    """Dub a media file.

    Writes the dubbed sound (or, for a film, the film with it), and beside it subtitles.vtt and report.json. Exits with
    1 if any fragment failed: its place holds silence, or what the server's FALLBACK_MODE says.
    """
    from protocol.dubbing import StreamConfig

    from ..client import cut as cutting
    from ..client import media as files
    from ..client.connection import Address
    from ..observe import logs

    if url and profile:
        raise click.UsageError("--profile chooses the engines of a server that is started here; --url names another.")
    try:
        if url:
            Address.parse(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    try:
        settings = load_settings(profile)
        files.check_output(output, source)
        models = _find_server(settings, profile, url, token)  # first: to decode a long file takes minutes
        media = files.read_media(source)
    except files.MediaError as error:
        raise click.ClickException(str(error)) from None
    logs.configure("WARNING" if settings.log_level == "INFO" else settings.log_level, "console")
    if media.damaged_packets:
        click.echo(f"{source}: {media.damaged_packets} damaged packets were left out", err=True)

    config = StreamConfig(spoken, target, voice, fragment_ms, media.rate_hz, media.samples.shape[1], format)
    options = Options(source, output, url, profile, config, cut, token, max_inflight, timeout_ms)
    if cut == "fixed":
        slots = cutting.cut_fixed(cutting.length_ms(len(media.samples), media.rate_hz), fragment_ms)
    else:
        slots = cutting.cut_at_pauses(media.samples, media.rate_hz, fragment_ms)
    finished = _run(settings, models, options, media, slots)
    try:
        _write(options, media, slots, finished)
    except files.MediaError as error:
        raise click.ClickException(f"{error}\nwrote subtitles.vtt and report.json all the same") from None
    except OSError as error:
        raise click.ClickException(str(error)) from None
    _show(options, slots, finished.results)
    sys.exit(1 if any(result.status == "failed" for result in finished.results) else 0)


# ---------------------------------------------------------------------------------------------- the work


def _find_server(settings: Settings, profile: str | None, url: str | None, token: str | None) -> Models | None:
    """The models of the server that is to be started, which can run here; None where there is a server at `url`."""
    from ..engines.suite import Models

    with _told(profile):
        if url is None:
            return Models.build(settings)
        trio.run(_greet, url, token)
    return None


async def _greet(url: str, token: str | None) -> None:
    from ..client.connection import Address, Connection

    connection = Connection(Address.parse(url), token=token)
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        await connection.close()


def _run(settings: Settings, models: Models | None, options: Options, media: Media, slots: list[Slot]) -> Dub:
    with _told(options.profile):
        if options.url is not None:
            return trio.run(_dub, options.url, options, media, slots)
        assert models is not None, "there is either a server or what one is made of"
        return trio.run(_with_server, settings, models, _dub, options, media, slots)


@contextmanager
def _told(profile: str | None) -> Iterator[None]:
    """What can be expected to go wrong, as what a person is told of it."""
    from ..client.connection import DubbingError, first_failure
    from ..engines.base import EngineUnavailable  # here: child processes of engines import this module, too

    trouble: str | None = None
    try:
        yield
    except* DubbingError as group:
        failure = first_failure(group)
        trouble = f"{failure}{_remedy(failure)}"
    except* EngineUnavailable as group:
        trouble = cannot_run(group, profile)
    except* KeyboardInterrupt:
        trouble = "interrupted: nothing was written"
    if trouble is not None:
        raise click.ClickException(trouble)  # here, since what an except* clause raises comes out in a group


def _remedy(failure: DubbingError) -> str:
    from protocol.errors import ErrorCode

    from ..client.connection import DubbingRefused, ServerUnreachable

    if isinstance(failure, ServerUnreachable) and failure.nobody_listens:
        return " (`sts-trio serve` starts a server; without --url one is started for the file)"
    if isinstance(failure, DubbingRefused) and failure.code == ErrorCode.AUTH_FAILED:
        return " (the server wants its STS_API_KEY: give it with --token, or in the environment as STS_API_KEY)"
    return ""


async def _with_server(
    settings: Settings,
    models: Models,
    job: Callable[[str, Options, Media, list[Slot]], Awaitable[T]],
    options: Options,
    media: Media,
    slots: list[Slot],
) -> T:
    """Do `job` with a server of our own, on a port of this machine that nobody else uses."""
    from ..server.app import Server

    settings = evolve(settings, host="127.0.0.1", port=0, metrics_port=None)
    server = Server(settings, models)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.run)
        options = evolve(options, token=settings.api_key)
        done = await job(f"http://127.0.0.1:{port}", options, media, slots)
        server.stop.set()
    return done


async def _dub(url: str, options: Options, media: Media, slots: list[Slot]) -> Dub:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..client.connection import DubbingError
    from ..client.programme import dub_programme
    from ..client.worker import Stream, open_worker
    from ..offload import thread_offload

    stream = Stream(
        config=options.config,
        stream_id=str(uuid.uuid4()),
        worker_id="sts-trio-dub",
        max_inflight=options.max_inflight,
        timeout_ms=options.timeout_ms,
    )
    columns = (TextColumn("dubbing"), BarColumn(), MofNCompleteColumn(), TextColumn("fragments"), TimeRemainingColumn())
    async with open_worker(url, stream, token=options.token) as worker:
        with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
            bar = progress.add_task("", total=len(slots))
            try:
                return await dub_programme(
                    worker,
                    media,
                    slots,
                    format=options.config.format,
                    offload=thread_offload(2),
                    on_result=lambda _: progress.update(bar, advance=1, refresh=True),  # no thread that refreshes
                )
            except DubbingError as failure:
                so_far = f"after {progress.tasks[bar].completed:.0f} of {len(slots)} fragments"
                raise DubbingError(
                    f"it ended {so_far}, and nothing was written: {failure}", retryable=failure.retryable
                ) from failure


# ---------------------------------------------------------------------------------------------- what it leaves


def _write(options: Options, media: Media, slots: list[Slot], finished: Dub) -> None:
    from ..client.media import replacing, write_media
    from ..client.report import report
    from ..client.subtitles import cues, webvtt

    try:
        write_media(options.output, finished.samples, media)
    finally:  # what was said is worth having without its sound, too
        texts = ((slots[result.sequence_number], result.translated_text or "") for result in finished.results)
        with replacing(options.output.with_name("subtitles.vtt")) as path:
            path.write_text(webvtt(cues(texts)), encoding="utf-8")
        body = report(str(options.source), str(options.output), slots[-1].end_ms, finished.results)
        with replacing(options.output.with_name("report.json")) as path:
            path.write_bytes(body)


def _show(options: Options, slots: list[Slot], results: list[FragmentProcessed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = results if len(results) <= _ROWS else [result for result in results if result.status != "success"]
    table = Table(title=f"{options.source.name} in {options.config.target_language}", show_lines=True)
    for heading in ("#", "from", "status", "ms", "heard", "said"):
        table.add_column(heading, justify="right" if heading in ("#", "from", "ms") else "left")
    for result in shown:
        slot = slots[result.sequence_number]
        heard = result.transcript or ""
        said = result.translated_text or ""
        if result.error is not None:
            said = f"{said}\n{result.error.code}: {result.error.message}".strip()
        table.add_row(
            str(result.sequence_number),
            f"{slot.start_ms / 1000:.1f} s",
            result.status,
            str(result.processing_time_ms),
            Text(heard),
            Text(said),
        )
    console = Console(markup=False, emoji=False)  # names of files are not markup
    if shown:
        console.print(table)
    counts = [f"{sum(r.status == status for r in results)} {status}" for status in ("success", "partial", "failed")]
    console.print(f"{len(results)} fragment{'s' * (len(results) != 1)}: {', '.join(counts)}", highlight=False)
    console.print(f"wrote {options.output}, subtitles.vtt and report.json", highlight=False, soft_wrap=True)
