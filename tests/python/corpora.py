"""Texts to make corpora of, and what is in a corpus, read without the code under test."""

import gzip
import hashlib
import json
import os
import random
import shutil

import numpy as np
import tokenizers
from scalevec import data

VOCABULARY = 600


def words(count, seed):
    """Lines of words that follow Zipf's law."""
    source = random.Random(seed)
    numbers = (int((1.001 - source.random()) ** -1.5) for _ in range(count))
    letters = str.maketrans("0123456789", "etaoinshrd")
    return "".join(
        f"{str(number).translate(letters)}{source.choice([' ', ' ', ' ', ', ', '. ', chr(10)])}" for number in numbers
    )


STRANGE = {
    "unicode.txt": "Ångström 日本語 👩‍🔬 e\u0301 \u3000 نص\ufeff\n" * 3,
    "lines.txt": "a\r\nb\rc\n\n\n  d\t\te \n \n\nf\n\n",
    "special.txt": "An end <|endoftext|> that is text.<|endoftext|>\n<|endoftext|>",
    "no_newline.txt": "x",
    "newline.txt": "\n",
    "blanks.txt": " " * 5000 + "\n" * 5000 + "\t",
    "cut.txt": words(60_000, 1),  # several pieces
    "indented.txt": words(60_000, 2).replace("\n", "\n    ").replace(". ", ".\n\n").replace(", ", ":\n"),
    "unbroken.txt": "=-_." * 300_000 + "\n",  # longer than any piece may be
}


def write_texts(folder):
    """Strange documents, ordinary ones in sub-folders, and what is no document."""
    (folder / "deep/er").mkdir(parents=True)
    for name, text in STRANGE.items():
        (folder / name).write_bytes(text.encode())
    for i in range(60):
        (folder / "deep" / f"{i}.txt").write_text(words(400 + i, 100 + i))
    (folder / "deep/er/man.3.gz").write_bytes(gzip.compress(b".TH MAN 3\nA page.\n"))
    (folder / "deep/er/again.gz").write_bytes(gzip.compress((folder / "deep/7.txt").read_bytes()))
    shutil.copy(folder / "deep/8.txt", folder / "twice.txt")
    (folder / "empty.txt").touch()
    (folder / "latin1.txt").write_bytes(b"Stra\xdfe")
    (folder / "cut_off.txt").write_bytes("日本".encode()[:-1])
    (folder / "binary").write_bytes(b"text\0text")
    (folder / "utf16.txt").write_bytes("text".encode("utf-16"))
    (folder / "binary.gz").write_bytes(gzip.compress(bytes(10)))
    (folder / "damaged.gz").write_bytes(gzip.compress(words(500, 3).encode())[:-9])
    (folder / "link.txt").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")


SKIPPED = {
    "binary": 3, "damaged gzip": 1, "duplicate": 2, "empty": 1, "link": 2, "no regular file": 1, "not UTF-8": 2,
}  # fmt: skip


def documents_of(folder):
    """Every document by its SHA-256, found without the code under test."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.parts[-2] == "loop":
            continue
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            try:
                content = gzip.decompress(content)
            except EOFError:
                continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if text and "\0" not in text:
            found[hashlib.sha256(content).hexdigest()] = text
    return found


def ids_by_document(folder, side):
    record = json.loads((folder / "corpus.json").read_text())
    ids = np.fromfile(folder / f"{side}.bin", {"uint16": "<u2", "uint32": "<u4"}[record["dtype"]])
    assert ids[-1] == record["end"]
    ends = np.flatnonzero(ids == record["end"])
    return [part[(0 if i == 0 else 1) :] for i, part in enumerate(np.split(ids, ends))][:-1]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def byte_level(special=(data.END,), extra=0):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(f"filler{i}" for i in range(extra))])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return backend
