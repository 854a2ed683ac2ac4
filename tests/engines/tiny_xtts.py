"""An XTTS checkpoint of a few megabytes with random weights, which the production loader loads like a real one.

It speaks noise, in the right format. It has two speakers, reads the letters of Europe, and stops by itself after some
twenty codes (a second).
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from sts_trio.engines.xtts_library import import_library

CHANNELS: Final = 64
STOP_CODE: Final = 257
SPEAKERS: Final = ("Ada Low", "Ben High")
LANGUAGES: Final = (
    "ar", "cs", "de", "en", "es", "fr", "hi", "hu", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh-cn",
)  # fmt: skip


@contextmanager
def small_vocoder() -> Iterator[None]:
    """Within it the library makes vocoders with a sixteenth of the channels: their number is in no configuration."""
    import_library()
    from TTS.tts.models import xtts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xtts, "HifiDecoder", functools.partial(xtts.HifiDecoder, upsample_initial_channel_decoder=32))
        yield


def make_checkpoint(folder: Path) -> Path:
    """Write the four files of a small checkpoint; it loads within `small_vocoder` only."""
    import_library()
    from TTS.tts.configs.xtts_config import XttsArgs

    return _write(
        folder,
        XttsArgs(
            gpt_layers=2,
            gpt_n_model_channels=CHANNELS,
            gpt_n_heads=4,
            gpt_num_audio_tokens=258,
            gpt_start_audio_token=256,
            gpt_stop_audio_token=STOP_CODE,
            gpt_use_perceiver_resampler=True,
            decoder_input_dim=CHANNELS,
        ),
        stop_bias=1.0,
    )


def make_large_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of 2 GB, as large as the one that is published; it never stops by itself."""
    import_library()
    from TTS.tts.configs.xtts_config import XttsArgs

    return _write(
        folder,
        XttsArgs(
            gpt_number_text_tokens=6_681,
            gpt_num_audio_tokens=1_026,
            gpt_start_audio_token=1_024,
            gpt_stop_audio_token=1_025,
            gpt_use_perceiver_resampler=True,
        ),
        stop_bias=-1e9,
    )


def _write(folder: Path, args: Any, stop_bias: float) -> Path:
    import torch
    from TTS.tts.configs.xtts_config import XttsConfig
    from TTS.tts.layers.xtts.tokenizer import VoiceBpeTokenizer
    from TTS.tts.models.xtts import Xtts

    folder.mkdir()
    _write_vocabulary(folder / "vocab.json")
    config = XttsConfig(model_args=args, languages=list(LANGUAGES), temperature=0.75, repetition_penalty=5.0)
    config.save_json(str(folder / "config.json"))
    channels = args.gpt_n_model_channels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = Xtts(config)
        model.tokenizer = VoiceBpeTokenizer(vocab_file=folder / "vocab.json")
        model.init_models()
        model.gpt.mel_head.bias[args.gpt_stop_audio_token] = stop_bias
        # Random weights are too quiet for speech, with some voices.
        model.hifigan_decoder.waveform_decoder.conv_post.weight *= 20
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        speakers = {
            name: {"gpt_cond_latent": torch.randn(1, 32, channels), "speaker_embedding": torch.randn(1, 512, 1)}
            for name in SPEAKERS
        }
        torch.save(speakers, folder / "speakers_xtts.pth")
    return folder


def _write_vocabulary(path: Path) -> None:
    """Single letters, and nothing to join them: a text has as many tokens as letters."""
    from tokenizers import Tokenizer, models

    special = ["[STOP]", "[UNK]", "[SPACE]", "[START]", *(f"[{language}]" for language in LANGUAGES)]
    letters = [
        *string.ascii_lowercase,
        *"áàâäãåæçéèêëíìîïñóòôöõøœßúùûüýÿžščřąćęłńśźż",
        *"абвгдежзийклмнопрстуфхцчшщъыьэюяё",
    ]
    pieces = [*special, *letters, *string.digits, *".,;:!?'-–()"]
    tokenizer = Tokenizer(
        models.BPE(vocab={it: index for index, it in enumerate(pieces)}, merges=[], unk_token="[UNK]")
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(path))
