"""A loaded Whisper model that hears a batch: the clips of several streams at once.

The parts are faster-whisper's (voice activity detection, features, tokens, prompts), the order of things is ours: its
own `transcribe` hears one clip at a time, and its batched pipeline the parts of one clip. Here each clip of a batch has
its own language and prompt, and one clip alone is a batch of one. A clip is one window for the model; only audio of
over 30 s has several, and those are heard in turn, the later ones knowing what the earlier ones said.

There is no sampling: a decode that failed is repeated once without the prompt, not at higher temperatures as in
OpenAI's transcribe.py, and what fails again is not said. So the same request has the same answer each time, and takes
twice as long at most.

Batched or alone, a clip goes through the same arithmetic row by row. On a CPU the results are equal; a GPU chooses its
kernels by the size of a batch, and may round differently in the last bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define, evolve, field, frozen

from protocol.errors import ErrorCode

from ..offload import check_cancelled
from . import hearing
from .base import ASR_SAMPLE_RATE_HZ, AsrRequest, EngineFailure, Samples, Segment, Transcript
from .gpu import is_out_of_memory, raise_if_lost, release_memory
from .hearing import Answer, Piece, Verdict
from .languages import language_code

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

WINDOW_FRAMES: Final = 30 * ASR_SAMPLE_RATE_HZ
"""What the model hears at once."""

TIME_STEP_FRAMES: Final = ASR_SAMPLE_RATE_HZ // 50
"""Between two of the times that the model can say: 20 ms."""

VAD: Final = {
    "threshold": 0.35,
    "min_silence_duration_ms": 500,
    "speech_pad_ms": 200,
    "min_speech_duration_ms": 100,
    "max_speech_duration_s": 30,
}
"""Silero's voice activity detection, set for fragments of some seconds that begin and end in the middle of words.

Measured on speech cut into fragments at any place: 0.4 % of it is lost; at the threshold 0.5, 1.3 %; with Silero's own
least duration of 250 ms too, 3.3 %. Music, tones and noise raise it for one or two of its frames of 32 ms, and never
for 100 ms. A pause of over half a second is cut out (2 s, as faster-whisper has it, is most of a fragment).
"""

BEAM_SIZE: Final = 5
"""As in OpenAI's transcribe command, and in faster-whisper."""

PROMPT_TOKENS: Final = (64, 32, 16, 8)
"""How much of the text before goes into a prompt: the most of these that there is.

A batch needs prompts of equal length, so the first few words are given up for more neighbours. Less than a few words
are no context.
"""

HINT_TOKENS: Final = 64
"""How much of the hints goes into a prompt: as many whole ones, in order, as fit."""

SHORT_S, SHORT_TOKENS, MOST_TOKENS = 10, 128, 224
"""The longest answer to a request of up to `SHORT_S`, and to a longer one. 224 is OpenAI's (half of the text context);
fast speech has about 6 tokens a second in English, and 15 in the languages that the model knows least. It bounds what
a loop costs."""

WHISPER_CODES: Final = {"jv": "jw", "nb": "no", "fil": "tl"}
"""Languages by the codes that Whisper has for them, where those are others."""


@define(eq=False)
class _Clip:
    """A request on its way: what of it is still to be heard, and what has been.

    Attributes:
        prompt: what the model is told was said before.
        failure: why nothing more of it is heard.
    """

    samples: Samples
    tokenizer: Tokenizer
    hints: str
    prompt: str
    windows: list[list[Piece]]
    text: str = ""
    segments: list[Segment] = field(factory=list)
    failure: EngineFailure | None = None

    @property
    def transcript(self) -> Transcript | EngineFailure:
        return self.failure or Transcript(self.text.strip(), tuple(self.segments))


@frozen
class _Row:
    """One window as the model is given it."""

    samples: Samples = field(repr=False)
    prompt: tuple[int, ...]
    bare_prompt: tuple[int, ...]
    most_tokens: int


@frozen
class _Output:
    """What the model made of a row."""

    tokens: tuple[int, ...]
    answer: Answer
    verdict: Verdict


class Listener:
    """A loaded model, called from one thread at a time.

    Args:
        languages: Whisper's codes of what it knows.
    """

    def __init__(self, model: WhisperModel, languages: frozenset[str]) -> None:
        from faster_whisper.transcribe import get_suppressed_tokens

        self._model = model
        self._languages = languages
        self._tokenizers: dict[str, Tokenizer] = {}
        self._suppressed = get_suppressed_tokens(self._tokenizer("en"), [-1])

    def close(self) -> None:
        """Free what the model takes; it cannot be used any more."""
        # CTranslate2's own `unload_model` does nothing while a thread of it is still winding up its last batch.
        del self._model

    def warm(self, batch: int) -> None:
        """Hear a second of noise in each of `batch` windows, whether or not it is speech."""
        samples = np.random.default_rng(0).normal(scale=0.1, size=ASR_SAMPLE_RATE_HZ).astype(np.float32)
        _pieces(samples)
        clip = _Clip(samples, self._tokenizer("en"), hints="", prompt="", windows=[])
        for output in self._decode([self._row(clip, samples)] * batch):
            if isinstance(output, EngineFailure):
                raise output

    def hear(self, batch: Sequence[AsrRequest]) -> Sequence[Transcript | EngineFailure]:
        """Transcribe each request; see `Instance`.

        Raises:
            EngineLost: the GPU is of no use any more.
            trio.Cancelled: the caller has left.
        """
        clips = [self._clip(request) for request in batch]
        while waiting := [clip for clip in clips if isinstance(clip, _Clip) and clip.windows]:
            self._hear_next_windows(waiting)
        return [clip.transcript if isinstance(clip, _Clip) else clip for clip in clips]

    def _clip(self, request: AsrRequest) -> _Clip | EngineFailure:
        check_cancelled()
        samples = request.samples
        if samples.dtype != np.float32 or samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            return EngineFailure(
                ErrorCode.ASR_FAILED,
                f"speech recognition takes finite float32 mono samples, not {samples.dtype} of shape {samples.shape}",
            )
        code = whisper_code(request.language)
        if code not in self._languages:
            return EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"this model does not know {request.language}")
        tokenizer = self._tokenizer(code)
        return _Clip(
            samples,
            tokenizer,
            hints=_fitting_hints(request.hints, tokenizer),
            prompt=request.previous_text,
            windows=hearing.windows(_pieces(samples), WINDOW_FRAMES),
        )

    def _hear_next_windows(self, clips: Sequence[_Clip]) -> None:
        windows = [clip.windows.pop(0) for clip in clips]
        rows = [
            self._row(clip, np.concatenate([clip.samples[start:end] for start, end in window]))
            for clip, window in zip(clips, windows, strict=True)
        ]
        outputs = self._decode(rows)
        again = [i for i, output in enumerate(outputs) if _was_lost(output) and rows[i].prompt != rows[i].bare_prompt]
        repeated = self._decode([evolve(rows[i], prompt=rows[i].bare_prompt) for i in again])
        for i, output in zip(again, repeated, strict=True):
            outputs[i] = output
        for clip, window, output in zip(clips, windows, outputs, strict=True):
            clip.prompt = ""
            if isinstance(output, EngineFailure):
                clip.failure = output
                clip.windows.clear()
            elif output.verdict is Verdict.BELIEVED:
                self._add(clip, window, output)

    def _add(self, clip: _Clip, window: list[Piece], output: _Output) -> None:
        """Append what was said in `window`, with times of the request's audio."""
        confidence = round(min(math.exp(output.answer.mean_log_probability), 1.0), 3)
        for stretch in hearing.stretches(
            output.tokens,
            first_time=clip.tokenizer.timestamp_begin,
            time_step=TIME_STEP_FRAMES,
            length=sum(end - start for start, end in window),
        ):
            text = clip.tokenizer.decode(list(stretch.tokens))
            if text.strip():
                start = hearing.original_position(stretch.start, window, end=False)
                end = hearing.original_position(stretch.end, window, end=True)
                clip.segments.append(Segment(_ms(start), _ms(end), text.strip(), confidence))
                clip.text += text
                clip.prompt += text

    def _row(self, clip: _Clip, samples: Samples) -> _Row:
        before = clip.tokenizer.encode(" " + _plain(clip.prompt).strip())
        length = next((length for length in PROMPT_TOKENS if length <= len(before)), 0)
        get_prompt = self._model.get_prompt
        return _Row(
            samples,
            prompt=tuple(get_prompt(clip.tokenizer, before[len(before) - length :], hotwords=clip.hints or None)),
            bare_prompt=tuple(get_prompt(clip.tokenizer, [])),
            most_tokens=SHORT_TOKENS if len(clip.samples) <= SHORT_S * ASR_SAMPLE_RATE_HZ else MOST_TOKENS,
        )

    def _decode(self, rows: Sequence[_Row]) -> list[_Output | EngineFailure]:
        """Let the model hear `rows`, those together whose prompts and answers are equally long.

        Where that fails each is heard alone: one that cannot be heard takes no other with it, and a GPU that is too
        full for several may have room for one.
        """
        outputs: dict[int, _Output | EngineFailure] = {}
        groups = defaultdict[tuple[int, int], list[int]](list)
        for i, row in enumerate(rows):
            groups[len(row.prompt), row.most_tokens].append(i)
        for group in groups.values():
            together = [rows[i] for i in group]
            try:
                heard: Sequence[_Output | EngineFailure] = self._generate(together)
            except EngineFailure as failure:
                heard = [failure]
            if len(heard) < len(group):
                heard = [self._decode([row])[0] for row in together]
            outputs.update(zip(group, heard, strict=True))
        return [outputs[i] for i in range(len(rows))]

    def _generate(self, rows: Sequence[_Row]) -> list[_Output]:
        from faster_whisper.audio import pad_or_trim

        features = []
        for row in rows:
            check_cancelled()
            # The last frame is of the silence that the extractor adds.
            features.append(pad_or_trim(self._model.feature_extractor(row.samples)[:, :-1]))
        failure = None
        try:
            results = self._run(np.stack(features), rows)
        except (RuntimeError, ValueError) as error:
            raise_if_lost(error)
            oom = is_out_of_memory(error)
            failure = EngineFailure(
                ErrorCode.GPU_OOM if oom else ErrorCode.ASR_FAILED, f"speech recognition failed: {error}"
            )
        if failure is not None:
            # Outside of the handler: the failure must not hold on to the error, whose frames hold memory of the GPU.
            if failure.code is ErrorCode.GPU_OOM:
                release_memory()
            raise failure
        tokenizer = self._tokenizer("en")  # they differ in their prompts only
        return [_output(result, row, tokenizer) for result, row in zip(results, rows, strict=True)]

    def _run(self, features: Samples, rows: Sequence[_Row]) -> Sequence[Any]:
        encoded = self._model.encode(features)
        check_cancelled()
        [prompt_length] = {len(row.prompt) for row in rows}
        [most_tokens] = {row.most_tokens for row in rows}
        results: Sequence[Any] = self._model.model.generate(
            encoded,
            [list(row.prompt) for row in rows],
            beam_size=BEAM_SIZE,
            # The library allows the lesser of half of this, and of this less the prompt but for its last token.
            max_length=max(2 * most_tokens, prompt_length - 1 + most_tokens),
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return results

    def _tokenizer(self, code: str) -> Tokenizer:
        from faster_whisper.tokenizer import Tokenizer

        if code not in self._tokenizers:
            self._tokenizers[code] = Tokenizer(
                self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=code
            )
        return self._tokenizers[code]


def _was_lost(output: _Output | EngineFailure) -> bool:
    return isinstance(output, _Output) and output.verdict is Verdict.FAILED


def _output(result: Any, row: _Row, tokenizer: Tokenizer) -> _Output:
    tokens = tuple(result.sequences_ids[0])
    answer = Answer(
        text=tokenizer.decode(list(tokens)).strip(),
        seconds=len(row.samples) / ASR_SAMPLE_RATE_HZ,
        # The score is the mean without the token that ends the text.
        mean_log_probability=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_probability=result.no_speech_prob,
    )
    return _Output(tokens, answer, hearing.judge(answer))


def _pieces(samples: Samples) -> list[Piece]:
    """Where somebody speaks."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    return [(piece["start"], piece["end"]) for piece in get_speech_timestamps(samples, VadOptions(**VAD))]


def _fitting_hints(hints: Sequence[str], tokenizer: Tokenizer) -> str:
    room = HINT_TOKENS
    fitting = []
    for hint in filter(None, (_plain(hint).strip() for hint in hints)):
        room -= len(tokenizer.encode(f" {hint},"))
        if room < 0:
            break
        fitting.append(hint)
    return ", ".join(fitting)


def _plain(text: str) -> str:
    """`text` without what the tokenizer would take for one of Whisper's special tokens, such as ``<|nospeech|>``."""
    return text.replace("<|", "< |")


def _ms(frames: int) -> int:
    return round(frames * 1_000 / ASR_SAMPLE_RATE_HZ)


def whisper_code(language: str) -> str:
    """Whisper's code of the language of a BCP 47 tag."""
    code = language_code(language)
    return WHISPER_CODES.get(code, code)
