"""Documents of a corpus: files of text, found, checked, hashed and cut, without ever being held whole."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import os
import pathlib
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from scalevec.errors import make_error

BLOCK = 1 << 20

# Where a text may be cut: byte-level rules end a word there, so that the ids of the parts are those of the whole.
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_PIECE = 1 << 16
# A run without a line end is cut here all the same; that changes an id or two beside the cut, and not the text.
_LONGEST_PIECE = 1 << 20


class Skip(Exception):
    """Why a file is no document."""


class Document(NamedTuple):
    digest: bytes
    path: str
    bytes: int

    def in_validation(self, share: float) -> bool:
        """By the first 64 bits of the SHA-256, so that a document keeps its side whatever else is there."""
        return int.from_bytes(self.digest[:8], "big") < int(share * 2**64)


def blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed where they are gzip's."""
    try:
        with open(path, "rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            while block := stream.read(BLOCK):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise Skip("damaged gzip") from None
    except OSError:
        raise Skip("unreadable") from None


def texts(blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in itertools.chain(blocks, [b""]):
            if b"\0" in block:
                raise Skip("binary")
            yield decoder.decode(block, final=not block)
    except UnicodeDecodeError:
        raise Skip("not UTF-8") from None


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """A text in parts that can be tokenised apart from each other."""
    rest = ""
    for text in texts:
        rest += text
        begin = 0
        while True:
            line_end = _LINE_END.search(rest, begin + _PIECE, begin + _LONGEST_PIECE)
            if line_end:
                end = line_end.end()
            elif len(rest) - begin >= _LONGEST_PIECE:
                end = begin + _LONGEST_PIECE
            else:
                break
            yield rest[begin:end]
            begin = end
        rest = rest[begin:]
    if rest:
        yield rest


def read_document(path: str) -> Document:
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for block in blocks(path):
            digest.update(block)
            size += len(block)
            yield block

    for _ in texts(hashed()):
        pass
    if not size:
        raise Skip("empty")
    return Document(digest.digest(), path, size)


def pieces_again(document: Document) -> Iterator[str]:
    """E_STATE unless the file still holds what it did."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for block in blocks(document.path):
            digest.update(block)
            yield block

    try:
        yield from pieces(texts(hashed()))
        same = digest.digest() == document.digest
    except Skip:
        same = False
    if not same:
        raise make_error(
            "E_STATE", f"data: {document.path} was changed while it was read; build again", file=document.path
        )


def files_of(path: pathlib.Path, skipped: Counter[str]) -> Iterator[str]:
    """The file itself, or every regular file of a folder; links in a folder are not followed."""
    if not path.is_dir():
        if not path.is_file():
            found = "something else" if path.exists() else "nothing"
            raise make_error("E_PATH", f"data: {path} is no file or folder", file=str(path), found=found)
        yield str(path)
        return

    def unreadable(_: OSError) -> None:
        skipped["unreadable"] += 1

    for folder, folders, names in os.walk(path, onerror=unreadable):
        folders.sort()
        skipped["link"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        for name in sorted(names):
            file = os.path.join(folder, name)
            try:
                mode = os.lstat(file).st_mode
            except OSError as error:
                unreadable(error)
                continue
            if stat.S_ISREG(mode):
                yield file
            else:
                skipped["link" if stat.S_ISLNK(mode) else "no regular file"] += 1
