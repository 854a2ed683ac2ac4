"""A whole programme: cut, sent, dubbed, and laid back to the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from protocol.dubbing import Audio, FragmentData, FragmentProcessed, StreamConfig, StreamEnd
from protocol.errors import ErrorCode
from sts_trio.client.connection import DubbingRefused
from sts_trio.client.cut import cut_fixed, length_ms
from sts_trio.client.media import Media, Pcm
from sts_trio.client.programme import Dub, dub_programme
from sts_trio.client.worker import Stream, open_worker
from sts_trio.testing.engines import inline_offload

from .fake_server import URL, FakeServer, Peer, Script, complete, dubbed, failed, refused


def programme(frames: int, rate_hz: int, channels: int) -> Media:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (frames, channels)).astype(np.int16)
    return Media(Path("programme.wav"), samples, rate_hz)


async def dub(media: Media, script: Script, *, format: str = "pcm_s16le", fragment_ms: int = 250) -> Dub:
    config = StreamConfig("en", "es", "default", fragment_ms, media.rate_hz, media.samples.shape[1], format)
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, script)
        stream = Stream(config=config, stream_id="stream")
        async with open_worker(URL, stream, open_stream=server.open_stream) as worker:
            slots = cut_fixed(length_ms(len(media.samples), media.rate_hz), fragment_ms)
            done = await dub_programme(worker, media, slots, format=format, offload=inline_offload)
        nursery.cancel_scope.cancel()
    return done


async def echo(peer: Peer) -> None:
    await peer.open(binary=True)
    await peer.dub_rest()


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
async def test_a_server_that_gives_back_what_it_got_changes_no_sample(
    autojump_clock: MockClock, rate_hz: int, channels: int
) -> None:
    media = programme(rate_hz * 2 + 13, rate_hz, channels)
    done = await dub(media, echo)
    # Where a slot is one frame longer than its duration (44.1 kHz and the like), that frame is silence.
    changed = np.flatnonzero((done.samples != media.samples).any(axis=1))
    assert done.samples.shape == media.samples.shape
    assert len(changed) <= len(done.results)
    assert not done.samples[changed].any()
    assert [result.sequence_number for result in done.results] == list(range(len(done.results)))


async def test_fragments_are_as_long_as_they_say(autojump_clock: MockClock) -> None:
    heard: list[Audio] = []

    async def script(peer: Peer) -> None:
        await echo(peer)

    async def listening(peer: Peer) -> None:
        try:
            await script(peer)
        finally:
            heard.extend(event.audio for event in peer.heard if isinstance(event, FragmentData))

    await dub(programme(44_100 + 17, 44_100, 2), listening)
    assert sum(audio.duration_ms for audio in heard) == 1_001
    for audio in heard:
        assert len(audio.data) == 4 * ((audio.duration_ms * 44_100 + 500) // 1_000)


@pytest.mark.parametrize("format", ["wav", "m4a"])
async def test_other_formats_come_back_in_place(autojump_clock: MockClock, format: str) -> None:
    t = np.arange(16_000) / 16_000
    tone = (np.sin(2 * np.pi * 300 * t) * 8_000).astype(np.int16)[:, np.newaxis]
    done = await dub(Media(Path("tone.wav"), tone, 16_000), echo, format=format, fragment_ms=500)
    difference = done.samples.astype(float) - tone
    assert np.abs(difference).mean() < 300


async def test_a_failed_fragment_is_its_fallback_or_silence(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        while True:
            match await peer.receive():
                case FragmentData(sequence_number=1) as fragment:
                    await peer.send(failed(fragment, ErrorCode.ASR_FAILED))
                case FragmentData(sequence_number=2) as fragment:
                    await peer.send(failed(fragment, ErrorCode.TTS_SYNTHESIS_FAILED, dubbed_audio=fragment.audio))
                case FragmentData() as fragment:
                    await peer.send(dubbed(fragment))
                case StreamEnd():
                    await peer.send(complete())

    media = programme(8_000, 8_000, 1)
    done = await dub(media, script)
    expected: Pcm = media.samples.copy()
    expected[2_000:4_000] = 0
    np.testing.assert_array_equal(done.samples, expected)
    assert [result.status for result in done.results] == ["success", "failed", "failed", "success"]


async def test_a_stream_that_ends_before_the_programme_is_one_error(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.receive_one(FragmentData)
        await peer.send(refused(ErrorCode.QUOTA_EXCEEDED))
        await peer.receive()

    raised: list[BaseException] = []
    media = programme(8_000, 8_000, 1)
    config = StreamConfig("en", "es", "default", 250, 8_000, 1, "pcm_s16le")
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, script)
        async with open_worker(
            URL, Stream(config=config, stream_id="stream"), open_stream=server.open_stream
        ) as worker:
            try:
                await dub_programme(worker, media, cut_fixed(1_000, 250), format="pcm_s16le", offload=inline_offload)
            except Exception as error:  # noqa: BLE001 - which one it is, is the question
                raised.append(error)
    assert [type(error) for error in raised] == [DubbingRefused]


async def test_audio_that_cannot_be_played_is_a_failure(autojump_clock: MockClock) -> None:
    def garbled(fragment: FragmentData) -> FragmentProcessed:
        return dubbed(fragment, dubbed_audio=evolve(fragment.audio, format="wav"))

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.send(garbled(await peer.receive_one(FragmentData)))
        await peer.dub_rest()

    done = await dub(programme(4_000, 8_000, 1), script)
    assert [result.status for result in done.results] == ["failed", "success"]
    assert done.results[0].error is not None
    assert done.results[0].error.code is ErrorCode.INVALID_AUDIO_FORMAT
    assert not done.samples[:2_000].any()
