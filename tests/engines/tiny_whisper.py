"""Whisper models that mean nothing and load like real ones: random weights, in the format of CTranslate2.

They are written with CTranslate2's own model specification, so that neither torch nor a download is needed, and take
a fraction of a second. What they "hear" depends on the audio, the language and the prompt, it is the same each time,
and they are as sure of it as a trained model is: so all that a real model's output goes through is gone through.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conftest import need

_CODES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk
te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo
ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""
LANGUAGES = tuple(_CODES.split())
"""Of the models before large-v3, in the order of their tokens."""

WORDS = tuple(
    " " + first + second + third
    for first in ("ba", "de", "fi", "go", "lu", "mo")
    for second in ("ra", "ne", "ti", "so", "pu", "ka")
    for third in ("", "n", "s", "l", "m")
)
"""What they can say."""

N_MELS = 80
N_AUDIO_CONTEXT = 1_500
N_TEXT_CONTEXT = 448
N_TIMESTAMPS = 1_501

Weights = NDArray[np.float32]


def write_whisper(
    folder: Path,
    *,
    multilingual: bool = True,
    width: int = 32,
    layers: int = 1,
    heads: int = 2,
    filler: int = 0,
    seed: int = 1,
    loops: bool = False,
    deaf: bool = False,
) -> Path:
    """Write a model into `folder` and return it.

    Args:
        multilingual: as ``base``, else as ``base.en``.
        width, layers, heads: of the encoder and of the decoder; ``base`` has 512, 6, 8.
        filler: tokens that are never said, to reach the vocabulary of a real model.
        loops: says the same over and over.
        deaf: believes that nobody speaks, and is not sure of what it says.
    """
    need(importlib.util.find_spec("faster_whisper"), "pip install 'sts-trio[asr]'")
    from ctranslate2.specs import WhisperSpec

    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    specials += ["<|notimestamps|>"]
    # CTranslate2 knows a multilingual model by its empty token.
    base = [*_byte_tokens(), *_beginnings(), *(f"<{i}>" for i in range(filler))]
    base += [""] if multilingual else []
    tokens = [*base, *specials, *(f"<|{i * 0.02:.2f}|>" for i in range(N_TIMESTAMPS))]
    ids = {token: i for i, token in enumerate(tokens)}

    random = np.random.default_rng(seed)
    spec = WhisperSpec(layers, heads, layers, heads)
    _fill_encoder(spec.encoder, width, random)
    _fill_decoder(spec.decoder, width, len(tokens), random, position_scale=0.0 if loops else 1.0)
    spec.decoder.projection.weight, spec.decoder.projection.bias = _projection(ids, width, random, loops, deaf)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [ids["<|endoftext|>"]]
    spec.config.lang_ids = [ids[f"<|{code}|>"] for code in LANGUAGES] if multilingual else []
    spec.config.alignment_heads = [(layers - 1, 0)]
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(base, specials)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"feature_size": N_MELS, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
        )
    )
    return folder


def _projection(
    ids: dict[str, int], width: int, random: np.random.Generator, loops: bool, deaf: bool
) -> tuple[Weights, Weights]:
    """How likely each token is: words mostly, now and then a time or the end, never bytes or filler."""
    sure = 1.0 if deaf else 8.0
    weight = _normal(random, len(ids), width, scale=sure / np.sqrt(width))
    bias = np.full(len(ids), -1_000.0, dtype=np.float32)
    bias[[ids[word.replace(" ", "Ġ")] for word in WORDS]] = 0.0
    first_time = len(ids) - N_TIMESTAMPS
    times = np.arange(N_TIMESTAMPS) * 0.02
    # Times of a fragment, the less likely the later, so that segments are some seconds long.
    bias[first_time:] = -sure - 1.5 * times
    bias[ids["<|endoftext|>"]] = -1_000.0 if loops else 1.4 * sure
    weight[ids["<|nospeech|>"]] = 0.0
    bias[ids["<|nospeech|>"]] = 100.0 if deaf else -100.0
    return weight, bias


def _fill_encoder(spec: Any, width: int, random: np.random.Generator) -> None:
    spec.conv1.weight = _normal(random, width, N_MELS, 3, scale=0.2)
    spec.conv1.bias = np.zeros(width, dtype=np.float32)
    spec.conv2.weight = _normal(random, width, width, 3, scale=1 / np.sqrt(width))
    spec.conv2.bias = np.zeros(width, dtype=np.float32)
    spec.position_encodings.encodings = _normal(random, N_AUDIO_CONTEXT, width, scale=0.1)
    _fill_norm(spec.layer_norm, width)
    for layer in spec.layer:
        _fill_attention(layer.self_attention, width, random, parts=(3, 1))
        _fill_feed_forward(layer.ffn, width, random)


def _fill_decoder(
    spec: Any, width: int, vocabulary: int, random: np.random.Generator, *, position_scale: float
) -> None:
    spec.embeddings.weight = _normal(random, vocabulary, width, scale=1.0)
    spec.position_encodings.encodings = _normal(random, N_TEXT_CONTEXT, width, scale=position_scale)
    _fill_norm(spec.layer_norm, width)
    for layer in spec.layer:
        _fill_attention(layer.self_attention, width, random, parts=(3, 1))
        _fill_attention(layer.attention, width, random, parts=(1, 2, 1))
        layer.attention.linear[-1].weight *= np.float32(3)  # what is heard counts for more than what was said
        _fill_feed_forward(layer.ffn, width, random)


def _fill_attention(spec: Any, width: int, random: np.random.Generator, parts: tuple[int, ...]) -> None:
    """`parts`: how many of query, key and value each projection makes; the last is the output's."""
    _fill_norm(spec.layer_norm, width)
    for linear, count in zip(spec.linear, parts, strict=True):
        _fill_linear(linear, width * count, width, random)


def _fill_feed_forward(spec: Any, width: int, random: np.random.Generator) -> None:
    _fill_norm(spec.layer_norm, width)
    _fill_linear(spec.linear_0, 4 * width, width, random)
    _fill_linear(spec.linear_1, width, 4 * width, random)


def _fill_linear(spec: Any, rows: int, columns: int, random: np.random.Generator) -> None:
    spec.weight = _normal(random, rows, columns, scale=2 / np.sqrt(columns))
    spec.bias = np.zeros(rows, dtype=np.float32)


def _fill_norm(spec: Any, width: int) -> None:
    spec.gamma = np.ones(width, dtype=np.float32)
    spec.beta = np.zeros(width, dtype=np.float32)


def _normal(random: np.random.Generator, *shape: int, scale: float) -> Weights:
    return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def _byte_tokens() -> list[str]:
    """The letters that byte-level BPE writes the 256 bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _beginnings() -> list[str]:
    """Each word that can be said and all it begins with, shortest first: what is merged to get there."""
    words = [word.replace(" ", "Ġ") for word in WORDS]
    return sorted({word[:end] for word in words for end in range(2, len(word) + 1)}, key=lambda part: (len(part), part))


def _tokenizer(base: list[str], specials: list[str]) -> dict[str, Any]:
    """`tokenizer.json`: a text is its bytes, of which the merges make the words that the model can say."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(base) + i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": {token: i for i, token in enumerate(base)},
            "merges": [[part[:-1], part[-1]] for part in _beginnings()],
        },
    }
