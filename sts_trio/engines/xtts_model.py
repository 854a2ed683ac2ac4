"""One loaded XTTS model: text to latents, latents to sound. Blocking; for one caller at a time, in any thread.

XTTS works in two steps. A GPT writes audio codes token by token and gives a *latent* for each (the performance); a
vocoder makes sound of the latents. Only the first step has to do with chance, and takes most of the time; only the
second has a speed.

Two things of it are shared by all instances of a process and kept apart here: torch's random numbers, which are not
used, and the library that makes words of numbers, which has state and is locked.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from attrs import define, frozen

from protocol.errors import ErrorCode

from ..offload import check_cancelled
from .base import EngineFailure, Samples, Take
from .voices import REFERENCE_RATE_HZ
from .xtts_library import Latents
from .xtts_text import digits_apart

CHARACTERS_PER_S: Final = 7.0
"""Half as fast as people speak on average: who speaks on for longer than his text allows does not speak the text."""

EXTRA_S: Final = 1.5
"""What pauses and breath may take beside it."""

_tokenizer_lock: Final = threading.Lock()
"""num2words, which makes words of numbers, keeps the precision of the one it is at in an object of the process."""


@frozen
class Prompt:
    """A text, as the GPT reads it.

    Attributes:
        spoken: the text in words, after the library's own rules for numbers and symbols.
        tokens: ids in the vocabulary.
        readable: whether any of it is in the vocabulary.
    """

    spoken: str
    tokens: Sequence[int]
    readable: bool


@define(eq=False)
class XttsModel:
    """A loaded checkpoint.

    Args:
        model: what `load_model` returned.
        device: ``cpu`` or ``cuda``, where it is.
    """

    _model: Any
    _device: str

    def __attrs_post_init__(self) -> None:
        # A CPU takes seconds for a long sentence: a cancel is looked for between the blocks of the vocoder, too.
        for block in self._model.hifigan_decoder.waveform_decoder.resblocks:
            block.register_forward_pre_hook(lambda *_: check_cancelled())

    @property
    def sample_rate_hz(self) -> int:
        """Of what it speaks: 24 kHz."""
        return int(self._model.args.output_sample_rate)

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self._model.args.gpt_n_model_channels)

    @property
    def most_tokens(self) -> int:
        """Tokens of text that it refuses."""
        return int(self._model.args.gpt_max_text_tokens)

    def most_characters(self, language: str) -> int:
        """Characters of text that it still speaks well."""
        return int(self._model.tokenizer.char_limits[language])

    def read(self, text: str, language: str) -> Prompt:
        """Make words of numbers and symbols, and tokens of the words.

        Where there is a number that the library fails over, as num2words does over 0.000001 in Czech and over a zeroth
        in Polish, all digits are read one by one.
        """
        tokenizer = self._model.tokenizer
        with _tokenizer_lock:
            try:
                spoken = tokenizer.preprocess_text(text.lower(), language)
            except Exception:  # num2words raises what comes up: ValueError, IndexError, NotImplementedError
                apart = digits_apart(text.lower())
                if apart == text.lower():
                    raise
                spoken = tokenizer.preprocess_text(apart, language)
        # As the library's own `encode` has it, but in small letters throughout: the vocabulary has no others, and some
        # words for numbers come in capitals.
        tag = "zh-cn" if language == "zh" else language
        encoded = tokenizer.tokenizer.encode(f"[{tag}]{spoken.lower()}".replace(" ", "[SPACE]"))
        readable = any(not token.startswith("[") and any(map(str.isalnum, token)) for token in encoded.tokens)
        return Prompt(spoken, encoded.ids, readable)

    def learn(self, recording: Samples) -> Latents:
        """The latents of a voice, from a recording at `REFERENCE_RATE_HZ`."""
        import torch

        config = self._model.config
        audio = torch.from_numpy(np.ascontiguousarray(recording))[None, : config.max_ref_len * REFERENCE_RATE_HZ]
        gpt = self._model.get_gpt_cond_latents(
            audio, REFERENCE_RATE_HZ, length=config.gpt_cond_len, chunk_length=config.gpt_cond_chunk_len
        )
        return Latents(gpt.cpu(), self._model.get_speaker_embedding(audio, REFERENCE_RATE_HZ).cpu())

    def perform(self, prompt: Prompt, voice: Latents, seed: str) -> tuple[Take, bool]:
        """Speak `prompt` in `voice`, as latents of shape ``(tokens, channels)``.

        Args:
            seed: what the chances of the performance are drawn from: the same seed, the same performance.

        Returns:
            the latents, and whether the model came to an end of its own before `CHARACTERS_PER_S` said it must.

        Raises:
            trio.Cancelled: see `check_cancelled`.
        """
        import torch

        gpt, args = self._model.gpt, self._model.args
        most = _most_codes(prompt.spoken, args.input_sample_rate / gpt.code_stride_len)
        with torch.inference_mode():
            conditioning = voice.gpt.to(self._device)
            text = torch.tensor([list(prompt.tokens)], dtype=torch.int32, device=self._device)
            codes = gpt.generate(
                conditioning,
                text,
                # Chance comes from `_Sampling`, whose best score it is then; see there.
                do_sample=False,
                num_beams=1,
                repetition_penalty=float(self._model.config.repetition_penalty),
                logits_processor=[_Sampling(self._model.config, seed)],
                stopping_criteria=[_Stop(most)],
            )
            check_cancelled()
            count = codes.shape[-1]
            latents = gpt(
                text,
                torch.tensor([text.shape[-1]], device=self._device),
                codes,
                torch.tensor([count * gpt.code_stride_len], device=self._device),
                cond_latents=conditioning,
                return_latent=True,
            )
            ended = bool(codes[0, -1] == gpt.stop_audio_token)
            take: Take = latents[0].float().cpu().numpy()
        return take, ended

    def sound(self, take: Take, voice: Latents, rate: float) -> Samples:
        """What a take sounds like at `rate` times its speed, at `sample_rate_hz`.

        Raises:
            EngineFailure: `TTS_SYNTHESIS_FAILED`: it came out as no numbers.
            trio.Cancelled: see `check_cancelled`.
        """
        import torch

        check_cancelled()
        with torch.inference_mode():
            latents = torch.from_numpy(np.ascontiguousarray(take))[None].to(self._device)
            if rate != 1.0:
                latents = torch.nn.functional.interpolate(
                    latents.transpose(1, 2), size=max(round(len(take) / rate), 1), mode="linear"
                ).transpose(1, 2)
            wave = self._model.hifigan_decoder(latents, g=voice.speaker.to(self._device))
            samples: Samples = wave.flatten().float().cpu().numpy()
        if not np.isfinite(samples).all():
            raise EngineFailure(ErrorCode.TTS_SYNTHESIS_FAILED, "the model's output has samples that are no numbers")
        return np.clip(samples, -1.0, 1.0)


def _most_codes(spoken: str, codes_per_s: float) -> int:
    return math.ceil((EXTRA_S + len(spoken) / CHARACTERS_PER_S) * codes_per_s)


class _Sampling:
    """Draws the next token, without torch's random numbers, which all threads share.

    To the scores that temperature, top-k and top-p leave it adds noise of Gumbel's distribution: the highest sum is
    then a token drawn with its probability (the Gumbel-max trick), and the library takes the highest where it does not
    sample. The noise is drawn on the CPU: a seed means the same on each device.
    """

    def __init__(self, config: Any, seed: str) -> None:
        import torch
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._warpers = (
            TemperatureLogitsWarper(float(config.temperature)),
            TopKLogitsWarper(int(config.top_k)),
            TopPLogitsWarper(float(config.top_p)),
        )
        digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
        self._chance = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        for warper in self._warpers:
            scores = warper(input_ids, scores)
        noise = torch.empty(scores.shape).exponential_(generator=self._chance)
        # Without MKL torch can draw 0, whose logarithm would let any token win, or make NaN of one that is ruled out.
        noise = -noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        return scores + noise.to(scores.device)


class _Stop:
    """Ends a performance after `most` codes, and at once when nobody waits for it any more."""

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        check_cancelled()
        self._left -= 1
        return torch.full((input_ids.shape[0],), self._left <= 0, dtype=torch.bool, device=input_ids.device)
