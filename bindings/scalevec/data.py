"""Training data: a folder of token ids, made from files and folders of text.

The folder holds ``tokenizer.json``; ``train.bin`` and ``validation.bin``, the ids, little-endian uint16 where the
vocabulary allows it and uint32 elsewhere, with the end-of-document id after every document; and ``corpus.json``,
which says what they are. It depends on the documents, the tokenizer and the share of validation, and on nothing else:
documents stand in the order of their SHA-256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from scalevec import _scalevec
from scalevec.documents import BLOCK, Document, Skip, files_of, pieces_again, read_document
from scalevec.errors import make_error

Progress = Callable[[str, int, int], None]
Path = str | os.PathLike[str]

END = "<|endoftext|>"
# What other tokenizers call the end of a text, the likeliest first.
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|end|>", "<|im_end|>")
# A tokenizer learns its words from so much of the train side: more text changes few of them, and costs memory.
_SAMPLE = 32 << 20
_LONGEST_WORD = 256
_LARGEST_TOKENIZER = 256 << 20


def _collect(
    paths: Sequence[Path], skipped: Counter[str], progress: Progress
) -> tuple[list[Document], list[dict[str, Any]]]:
    """All documents by SHA-256, each once; and what each path gave."""
    listed = [(pathlib.Path(path), list(files_of(pathlib.Path(path), skipped))) for path in paths]
    total = sum(len(files) for _, files in listed)
    found: dict[bytes, Document] = {}
    sources = []
    done = 0
    for path, files in listed:
        documents = size = 0
        for file in files:
            progress("reading texts", done, total)
            done += 1
            try:
                document = read_document(file)
                if document.digest in found:
                    raise Skip("duplicate")
            except Skip as why:
                skipped[str(why)] += 1
                continue
            found[document.digest] = document
            documents += 1
            size += document.bytes
        # The name only: a corpus says nothing about the machine it was made on.
        sources.append({"name": path.resolve().name, "documents": documents, "bytes": size})
    progress("reading texts", total, total)
    return [found[digest] for digest in sorted(found)], sources


def _train_tokenizer(documents: Iterable[Document], vocabulary: int, progress: Progress) -> tuple[str, int]:
    """A byte-level BPE tokenizer as JSON, and how many bytes it learned from."""
    sample = []
    size = 0
    for document in documents:
        if size >= _SAMPLE:
            break
        sample.append(document)
        size += document.bytes
    total = min(size, _SAMPLE)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for document in sample:
            for piece in pieces_again(document):
                if read >= _SAMPLE:
                    return
                read += len(piece.encode())
                progress("training the tokenizer", min(read, total), total)
                yield piece

    backend = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Learning from a word takes the square of its length, and a file may be one word.
    backend.pre_tokenizer = pre_tokenizers.Sequence([byte_level, pre_tokenizers.FixedLength(_LONGEST_WORD)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(texts(), trainer)
    backend.pre_tokenizer = byte_level
    return backend.to_str(pretty=True), read


def _read_tokenizer(path: pathlib.Path) -> str:
    text = _scalevec.read_beside(path.parent, path.name, most=_LARGEST_TOKENIZER, allow_links=True)
    if text is None:
        raise make_error("E_PATH", f"data: there is no tokenizer {path}", file=str(path))
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise make_error("E_UTF8", f"data: the tokenizer {path} is no UTF-8: {error}", file=str(path)) from error


class _Encoder:
    """A tokenizer as a corpus needs it: the ids of texts that come in parts, without special tokens."""

    def __init__(self, description: str, end: str | None, source: str) -> None:
        try:
            backend = tokenizers.Tokenizer.from_str(description)
        except Exception as error:
            raise make_error("E_FORMAT", f"data: the tokenizer {source} is damaged: {error}", file=source) from error
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # an end token that stands in a text is text
        self._backend = backend
        self.vocabulary = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=0)
        self.dtype = np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")
        special = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.special}
        names = [end] if end is not None else [name for name in _ENDS if name in special]
        if not names or names[0] not in special:
            raise make_error(
                "E_CONFIG",
                f"data: the tokenizer {source} has no special token {end or 'that ends a text'}; name one of "
                f"{', '.join(sorted(special)) or 'them (it has none)'}",
                file=source, key="end",
            )  # fmt: skip
        self.end = special[names[0]]
        lines = ["The end.", "A   b\tc", "x = f(1);", "Été", "12", "#"]
        for one, two in itertools.product(lines, lines):
            *parts, whole = self.ids([f"{one}\n", two, f"{one}\n{two}"])
            if not np.array_equal(np.concatenate(parts), whole):
                raise make_error(
                    "E_CONFIG",
                    f"data: the tokenizer {source} marks the beginning of a text, so that none can be tokenised in "
                    "parts; take a byte-level one",
                    file=source, expected=f"{[list(map(int, ids)) for ids in parts]}", found=f"{whole.tolist()}",
                )  # fmt: skip

    def ids(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, self.dtype) for each in encoded]

    def documents(self, documents: Iterable[Document]) -> Iterator[tuple[np.ndarray, int]]:
        """Ids, and how many bytes of text they are; an end after each document."""
        end = np.array([self.end], self.dtype)
        waiting: list[str] = []
        last: list[bool] = []  # of its document
        size = 0

        def flush() -> Iterator[tuple[np.ndarray, int]]:
            for text, ids, is_last in zip(waiting, self.ids(waiting), last, strict=True):
                yield (np.concatenate([ids, end]) if is_last else ids), len(text.encode())

        for document in documents:
            pieces = pieces_again(document)
            piece: str | None = next(pieces)
            while piece is not None:
                following = next(pieces, None)
                waiting.append(piece)
                last.append(following is None)
                size += len(piece)
                piece = following
                if size >= BLOCK:
                    yield from flush()
                    waiting, last, size = [], [], 0
        yield from flush()


class _Writer:
    """A file that is hashed as it grows."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        return f"sha256:{self._digest.hexdigest()}"


def _write(path: pathlib.Path, data: bytes) -> str:
    with _Writer(path) as writer:
        writer.write(data)
        return writer.finish()


def _write_ids(
    folder: pathlib.Path, encoder: _Encoder, sides: dict[str, list[Document]], progress: Progress
) -> dict[str, Any]:
    sizes = {side: sum(document.bytes for document in documents) for side, documents in sides.items()}
    done = 0
    splits = {}
    for side, documents in sides.items():
        count = 0
        with _Writer(folder / f"{side}.bin") as writer:
            for ids, size in encoder.documents(documents):
                writer.write(ids.tobytes())
                count += len(ids)
                done += size
                progress("writing ids", done, sum(sizes.values()))
            digest = writer.finish()
        splits[side] = {"documents": len(documents), "bytes": sizes[side], "ids": count, "sha256": digest}
    return splits


def build(
    paths: Path | Sequence[Path],
    output: Path,
    *,
    vocabulary: int | None = None,
    tokenizer: Path | None = None,
    end: str | None = None,
    validation: float = 0.05,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes a corpus of files and folders of text.

    A document is a file of UTF-8 without NUL bytes, gzip's decompressed. Of equal ones one is taken; what is no
    document is counted by reason. A document is on the validation side if the first 64 bits of its SHA-256, as a
    fraction, are below `validation`: so it stays there whatever is added. Memory does not grow with the text; it does
    with the number of files, by about 0.5 KB each.

    Args:
        paths: Files, and folders with all in them; links inside folders are not followed.
        output: The folder to make; nothing that is not empty is replaced.
        vocabulary: Trains a byte-level BPE tokenizer of so many ids, the 256 bytes and the end of a document among
            them, on the first 32 MB of the train side.
        tokenizer: Or a ``tokenizer.json`` to use.
        end: Its special token that ends a document; by default the first that it has of ``<|endoftext|>``,
            ``<|end_of_text|>``, ``</s>``, ``<eos>``, ``<|end|>``, ``<|im_end|>``.

    Returns:
        What ``corpus.json`` says.

    Raises:
        FileError: E_PATH if a path is missing or the destination is taken.
        InvalidError: E_VALUE if there is no text or a number is out of range; E_STATE if a file changes meanwhile;
            E_FORMAT or E_CONFIG if the tokenizer is damaged or cannot serve.
    """
    progress = progress or (lambda what, done, total: None)
    if (vocabulary is None) == (tokenizer is None):
        raise make_error(
            "E_VALUE", "data: give either a vocabulary, to train a tokenizer, or a tokenizer", key="vocabulary"
        )
    if vocabulary is not None and not 257 <= vocabulary <= 1_000_000:
        raise make_error(
            "E_VALUE", f"data: a vocabulary of {vocabulary}: the 256 bytes and the end of a document are in it already",
            key="vocabulary", expected="257 to 1000000", found=str(vocabulary),
        )  # fmt: skip
    if not 0.0 <= validation < 1.0:
        raise make_error(
            "E_VALUE", f"data: a validation share of {validation}", key="validation", expected="0 or more, below 1"
        )
    if end is not None and tokenizer is None:
        raise make_error("E_VALUE", "data: an end token is named for a tokenizer that exists", key="end")
    _scalevec.require_free_folder(output)
    description = None if tokenizer is None else _read_tokenizer(pathlib.Path(tokenizer))
    if description is not None:
        _Encoder(description, end, str(tokenizer))  # refused before hours of reading, not after

    skipped: Counter[str] = Counter()
    documents, sources = _collect([paths] if isinstance(paths, (str, os.PathLike)) else paths, skipped, progress)
    sides = {
        "train": [document for document in documents if not document.in_validation(validation)],
        "validation": [document for document in documents if document.in_validation(validation)],
    }
    if not sides["train"]:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted((+skipped).items())) or "no files"
        if documents:
            why = f"all {len(documents)} documents fell on the validation side: give more, or a smaller share"
        raise make_error("E_VALUE", f"data: there is no text to train on ({why})", key="paths")

    learned = None
    if description is None:
        assert vocabulary is not None
        description, learned = _train_tokenizer(sides["train"], vocabulary, progress)
    encoder = _Encoder(description, end, str(tokenizer))

    with _scalevec.NewFolder(output) as made:
        folder = pathlib.Path(made)
        splits = _write_ids(folder, encoder, sides, progress)
        record = {
            "schema": "scalevec corpus 1",
            "tool": f"scalevec {_scalevec.version}, tokenizers {tokenizers.__version__}",
            "vocabulary": encoder.vocabulary,
            "end": encoder.end,
            "dtype": "uint16" if encoder.dtype.itemsize == 2 else "uint32",
            "tokenizer": {
                "sha256": _write(folder / "tokenizer.json", description.encode()),
                "trained_on_bytes": learned,
            },
            "splits": splits,
            "validation_share": validation,
            "sources": sources,
            "skipped": dict(sorted((+skipped).items())),
        }
        record["digest"] = _digest(record)
        _write(folder / "corpus.json", json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
    return record


def _digest(record: dict[str, Any]) -> str:
    """As Corpus::open computes it."""
    lines = [
        record["schema"],
        f"vocabulary {record['vocabulary']}",
        f"end {record['end']}",
        f"tokenizer {record['tokenizer']['sha256']}",
        *(f"{name} {split['ids']} {split['sha256']}" for name, split in record["splits"].items()),
    ]
    return "sha256:" + hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def describe(folder: Path, *, verify: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """What ``corpus.json`` says, after the checks of ``Corpus.open``; `verify` reads every file and compares."""
    corpus = _scalevec.Corpus.open(folder)
    if verify:
        corpus.verify(progress)
    record: dict[str, Any] = json.loads((pathlib.Path(folder) / "corpus.json").read_bytes())
    return record
