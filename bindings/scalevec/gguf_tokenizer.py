"""Rebuilds a `tokenizers` tokenizer from the metadata of a GGUF file, which carries vocabulary and merges only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from scalevec.errors import make_error

# Kinds of tokens in tokenizer.ggml.token_type.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Split:
    """How a byte-level vocabulary cuts text before merging: what `tokenizer.ggml.pre` stands for."""

    pattern: str = _GPT2
    digits_first: bool = False  # every digit stands alone, and is cut off before the pattern looks
    whole_words: bool = False  # a word that is in the vocabulary is taken without merging
    adds_bos: bool = False  # where the file does not say
    nfc: bool = False


_DIGITS = _Split(digits_first=True)
_BPE = {
    "default": _Split(),
    "gpt-2": _Split(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _Split(_LLAMA3, whole_words=True, adds_bos=True),
    "llama3": _Split(_LLAMA3, whole_words=True, adds_bos=True),
    "llama-v3": _Split(_LLAMA3, whole_words=True, adds_bos=True),
    "qwen2": _Split(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Split(_QWEN2, nfc=True),
    "tekken": _Split(_TEKKEN, whole_words=True, adds_bos=True),
}


def _byte_spelling() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = [""] * 256
    for byte in printable:
        spelling[byte] = chr(byte)
    for number, byte in enumerate(b for b in range(256) if b not in set(printable)):
        spelling[byte] = chr(256 + number)
    return spelling


def _get(metadata: Mapping[str, Any], key: str, default: Any = None) -> Any:
    return metadata.get(f"tokenizer.ggml.{key}", default)


def _refuse(message: str, key: str, code: str = "E_CONFIG", **fields: Any) -> Exception:
    return make_error(
        code, f"tokenizer: {message}. Pass token ids instead of text.", key=f"tokenizer.ggml.{key}", **fields
    )


def _damaged(message: str, key: str, **fields: Any) -> Exception:
    return _refuse(message, key, "E_FORMAT", **fields)


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if vocabulary.setdefault(token, index) != index:
            raise _damaged(f"token {token!r} stands twice in the vocabulary", "tokens", index=index)
    return vocabulary


def _byte_level(metadata: Mapping[str, Any], split: _Split) -> tokenizers.Tokenizer:
    spelling = _byte_spelling()
    alphabet = set(spelling)
    kinds = _get(metadata, "token_type") or ()
    tokens = [
        token
        if (index < len(kinds) and kinds[index] in (CONTROL, USER_DEFINED)) or alphabet.issuperset(token)
        else "".join(spelling[byte] for byte in token.encode())
        for index, token in enumerate(_get(metadata, "tokens"))
    ]
    merges = _get(metadata, "merges")
    if merges is None:
        raise _damaged("a byte-level vocabulary without merges", "merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for index, pair in enumerate(pairs):
        if len(pair) != 2:
            raise _damaged(f"merge {merges[index]!r} is no pair", "merges", index=index)
    vocabulary = _vocabulary(tokens)
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split.whole_words)
    except Exception as error:
        raise _damaged(f"merges that the vocabulary cannot hold: {error}", "merges") from error
    backend = tokenizers.Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits_first else []
    if split.pattern == _GPT2:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges_by_score(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that a vocabulary of scored pieces implies: every cut of a piece into two, best piece first.

    A user-defined piece goes before all learned ones, in file order: SentencePiece matches it before it merges.
    """
    usable = {t for t, kind in zip(tokens, kinds, strict=True) if kind not in (UNKNOWN, CONTROL, BYTE)}
    order = sorted(
        (index for index, token in enumerate(tokens) if len(token) > 1 and token in usable),
        key=lambda index: (0, index) if kinds[index] == USER_DEFINED else (1, -scores[index]),
    )
    return [
        (token[:cut], token[cut:])
        for token in map(tokens.__getitem__, order)
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in usable and token[cut:] in usable
    ]


def _sentencepiece(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    # The converter writes a user-defined run of spaces with spaces; inside the model it has the space mark.
    tokens = ["\u2581" * len(t) if t.strip(" ") == "" else t for t in _get(metadata, "tokens")]
    vocabulary = _vocabulary(tokens)
    kinds = _get(metadata, "token_type")
    scores = _get(metadata, "scores")
    if scores is None or kinds is None or len(scores) != len(tokens) or len(kinds) != len(tokens):
        raise _damaged("a SentencePiece vocabulary needs one score and one type for each token", "scores")
    unknown = _get(metadata, "unknown_token_id")
    merges = _get(metadata, "merges")
    pairs = [tuple(m.split(" ")) for m in merges] if merges else _merges_by_score(tokens, kinds, scores)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=pairs,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(_get(metadata, "add_space_prefix", True))
    mark = [normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *mark] if prefix else mark)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def build(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer from GGUF metadata: keys ``tokenizer.ggml.*``.

    Raises:
        InvalidError: E_CONFIG where there is no vocabulary, or its kind or way of cutting text is not known; E_FORMAT
            where it is damaged.
    """
    model, tokens = _get(metadata, "model"), _get(metadata, "tokens")
    if not tokens:
        raise _refuse("the file holds no vocabulary", "tokens")
    if model == "gpt2":
        pre = _get(metadata, "pre", "default")
        if pre not in _BPE:
            raise _refuse(f"text-cutting rule {pre!r} is not known; known are {', '.join(_BPE)}", "pre", found=pre)
        backend, adds_bos = _byte_level(metadata, _BPE[pre]), _BPE[pre].adds_bos
    elif model == "llama":
        if _get(metadata, "remove_extra_whitespaces", False) or _get(metadata, "precompiled_charsmap"):
            raise _refuse("a SentencePiece vocabulary that rewrites its text", "precompiled_charsmap")
        backend, adds_bos = _sentencepiece(metadata), True
    else:
        raise _refuse(f"vocabulary of kind {model!r}; known are gpt2, llama", "model", found=str(model))

    kinds = _get(metadata, "token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise _damaged(f"{len(tokens)} tokens, but {len(kinds)} types", "token_type")
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        named = [t for t, k in zip(tokens, kinds, strict=True) if k == kind and backend.token_to_id(t) is not None]
        added = [AddedToken(token, normalized=False, special=special) for token in named]
        (backend.add_special_tokens if special else backend.add_tokens)(added)

    ends = []
    for flag, key, default in (("add_bos_token", "bos", adds_bos), ("add_eos_token", "eos", False)):
        index = _get(metadata, f"{key}_token_id")
        ends.append(tokens[index] if _get(metadata, flag, default) and index is not None else None)
    set_ends(backend, *ends)
    return backend


def set_ends(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Lets the tokenizer put `bos` before and `eos` after a text; None for neither."""
    parts = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=parts, special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos) if token]
    )
