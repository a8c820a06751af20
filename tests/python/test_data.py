"""Corpora: every id against the documents and against `tokenizers` itself, sides that stay, refusals, interruptions."""

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scalevec as sv
import tokenizers
import torch
from scalevec import cli, data, documents

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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of text: strange documents, ordinary ones in sub-folders, and what is no document."""
    folder = tmp_path_factory.mktemp("texts") / "some texts"
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
    return folder


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


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "corpus"
    said = data.build(texts, folder, vocabulary=VOCABULARY, validation=0.2)
    assert said == json.loads((folder / "corpus.json").read_text())
    return folder


def ids_by_document(folder, side):
    record = json.loads((folder / "corpus.json").read_text())
    ids = np.fromfile(folder / f"{side}.bin", {"uint16": "<u2", "uint32": "<u4"}[record["dtype"]])
    assert ids[-1] == record["end"]
    ends = np.flatnonzero(ids == record["end"])
    return [part[(0 if i == 0 else 1) :] for i, part in enumerate(np.split(ids, ends))][:-1]


def own_tokenizer(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.encode_special_tokens = True
    return backend


def test_ids_decode_to_the_documents_and_are_those_of_tokenizers(texts, corpus):
    documents = documents_of(texts)
    backend = own_tokenizer(corpus)
    found = {}
    for side in ("train", "validation"):
        order = []
        for ids in ids_by_document(corpus, side):
            text = backend.decode(ids.tolist(), skip_special_tokens=False)
            digest = hashlib.sha256(text.encode()).hexdigest()
            order.append(digest)
            found[digest] = side
            assert documents[digest] == text
            if text != STRANGE["unbroken.txt"]:
                assert backend.encode(text, add_special_tokens=False).ids == ids.tolist()
        assert order == sorted(order)
    assert found.keys() == documents.keys()
    assert {"train", "validation"} == set(found.values())
    for digest, side in found.items():
        assert (side == "validation") == (int(digest, 16) / 2**256 < 0.2), digest


def test_a_text_is_cut_where_it_does_not_matter_how_it_came():
    for text in STRANGE.values():
        whole = list(documents.pieces([text]))
        assert "".join(whole) == text
        assert all(len(piece) <= documents._LONGEST_PIECE for piece in whole)
        for size in (70_000, 1 << 18, 1 << 20):
            assert list(documents.pieces(text[i : i + size] for i in range(0, len(text), size))) == whole
    assert len(list(documents.pieces([STRANGE["cut.txt"]]))) > 1


def test_the_ids_of_the_parts_are_those_of_the_whole(corpus, smollm2_gguf, monkeypatch):
    monkeypatch.setattr(documents, "_PIECE", 16)
    smollm2 = sv.load(smollm2_gguf).tokenizer._backend.to_str()
    for description in ((corpus / "tokenizer.json").read_text(), smollm2):
        encoder = data._Encoder(description, None, "")
        for name in ("unicode.txt", "lines.txt", "cut.txt", "indented.txt"):
            pieces = list(documents.pieces([STRANGE[name]]))
            assert len(pieces) > 2 or name in ("unicode.txt", "lines.txt")
            parts, (whole,) = encoder.ids(pieces), encoder.ids([STRANGE[name]])
            assert np.array_equal(np.concatenate(parts), whole), name


def test_the_record_counts_what_there_is(texts, corpus):
    documents = documents_of(texts)
    record = data.describe(corpus, verify=True)
    splits = record["splits"]
    assert record["skipped"] == SKIPPED
    assert record["vocabulary"] == VOCABULARY and record["dtype"] == "uint16" and record["end"] == 0
    assert record["sources"] == [
        {"name": "some texts", "documents": len(documents), "bytes": sum(len(t.encode()) for t in documents.values())}
    ]
    for key in ("documents", "bytes"):
        assert sum(split[key] for split in splits.values()) == record["sources"][0][key]
    for side, split in splits.items():
        content = (corpus / f"{side}.bin").read_bytes()
        assert split["sha256"] == f"sha256:{hashlib.sha256(content).hexdigest()}" and 2 * split["ids"] == len(content)
        assert split["documents"] == len(ids_by_document(corpus, side))
    assert str(texts.parent) not in (corpus / "corpus.json").read_text()
    assert sorted(path.name for path in corpus.iterdir()) == [
        "corpus.json", "tokenizer.json", "train.bin", "validation.bin",
    ]  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "learned"), [(VOCABULARY, VOCABULARY), (50_000, None)])
def test_the_tokenizer_is_the_one_that_tokenizers_trains(texts, tmp_path, vocabulary, learned):
    corpus = tmp_path / "corpus"
    data.build([texts / "deep", texts / "cut.txt"], corpus, vocabulary=vocabulary, validation=0.2)
    ours = own_tokenizer(corpus)
    train = [ours.decode(ids.tolist(), skip_special_tokens=False) for ids in ids_by_document(corpus, "train")]
    peer = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    peer.train_from_iterator(
        train, vocab_size=vocabulary, min_frequency=2, special_tokens=[data.END], show_progress=False
    )
    assert peer.get_vocab() == ours.get_vocab()
    assert len(peer.get_vocab()) == learned or (learned is None and VOCABULARY < len(peer.get_vocab()) < vocabulary)
    held_out = words(1000, 999)
    assert peer.encode(held_out).ids == ours.encode(held_out).ids


def test_the_corpus_reads_what_numpy_reads(corpus):
    opened = sv.Corpus.open(corpus)
    record = data.describe(corpus)
    assert opened.digest == record["digest"] and opened.vocabulary == VOCABULARY
    assert opened.entropy() != opened.entropy()
    for side in ("train", "validation"):
        ids = np.fromfile(corpus / f"{side}.bin", "<u2").astype(np.int64)
        assert opened.ids(side) == len(ids)
        for context in (1, 7, 64, 1000):
            count = opened.windows(side, context)
            assert count == (len(ids) - 1) // context
            windows = [count - 1, 0, count // 2]
            read = opened.read(side, windows, context)
            assert read.dtype == torch.int64
            for row, window in zip(read.numpy(), windows, strict=True):
                assert np.array_equal(row, ids[window * context : window * context + context + 1])
    with pytest.raises(sv.InvalidError, match=r"E_VALUE.*train or validation"):
        opened.ids("test")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_built_twice_it_is_the_same_to_the_byte(texts, corpus, tmp_path):
    again = tmp_path / "again"
    command = [sys.executable, "-m", "scalevec", "data", "build", texts, "--vocab", VOCABULARY, "--validation", 0.2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([*map(str, command), "-o", str(again)], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert files_of(again) == files_of(corpus)


def test_other_names_and_orders_give_the_same_digest(texts, corpus, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for i, text in enumerate(reversed(documents_of(texts).values())):
        path = moved / f"{i}"
        path.write_bytes(text.encode())
    first, rest = sorted(moved.iterdir())[:20], sorted(moved.iterdir())[20:]
    record = data.build([*rest, *first], tmp_path / "corpus", vocabulary=VOCABULARY, validation=0.2)
    assert record["digest"] == data.describe(corpus)["digest"]
    changed = data.build([*rest, *first], tmp_path / "other", vocabulary=VOCABULARY + 1, validation=0.2)
    assert changed["digest"] != record["digest"]


def test_sides_stay_when_documents_come(texts, corpus, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    for i in range(100):
        (more / f"{i}.txt").write_text(words(20, 5000 + i))
    grown = tmp_path / "grown"
    data.build([texts, more], grown, tokenizer=corpus / "tokenizer.json", validation=0.2)
    sides = [
        {side: {ids.tobytes() for ids in ids_by_document(folder, side)} for side in ("train", "validation")}
        for folder in (corpus, grown)
    ]
    for side in ("train", "validation"):
        assert sides[0][side] < sides[1][side]
    assert (grown / "tokenizer.json").read_bytes() == (corpus / "tokenizer.json").read_bytes()
    # A larger share moves documents to validation and none back.
    half = tmp_path / "half"
    data.build([texts, more], half, tokenizer=corpus / "tokenizer.json", validation=0.5)
    assert sides[1]["validation"] < {ids.tobytes() for ids in ids_by_document(half, "validation")}


def byte_level(special=(data.END,), extra=0):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(f"filler{i}" for i in range(extra))])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return backend


def test_a_large_vocabulary_takes_four_bytes_an_id(texts, tmp_path):
    for extra, dtype in [(65_536 - 257, "uint16"), (65_536 - 256, "uint32")]:
        file, folder = tmp_path / f"{dtype}.json", tmp_path / dtype
        byte_level(extra=extra).save(str(file))
        record = data.build(texts / "deep", folder, tokenizer=file)
        assert record["dtype"] == dtype and record["end"] == record["vocabulary"] - 1 == 256 + extra
        assert record["tokenizer"]["trained_on_bytes"] is None
        backend = own_tokenizer(folder)
        documents = documents_of(texts / "deep")
        for side in ("train", "validation"):
            for ids in ids_by_document(folder, side):
                text = backend.decode(ids.tolist())
                assert documents.pop(hashlib.sha256(text.encode()).hexdigest()) == text
        assert not documents
        assert sv.Corpus.open(folder).read("train", [0], 9).max() < record["vocabulary"]


def test_real_tokenizers_serve(smollm2_gguf, texts, tmp_path):
    file = tmp_path / "tokenizer.json"
    sv.load(smollm2_gguf).tokenizer._backend.save(str(file))
    record = data.build(texts, tmp_path / "corpus", tokenizer=file)
    assert record["vocabulary"] == 49_152 and record["end"] == 0
    backend = own_tokenizer(tmp_path / "corpus")
    for ids in ids_by_document(tmp_path / "corpus", "train"):
        text = backend.decode(ids.tolist(), skip_special_tokens=False)
        if text != STRANGE["unbroken.txt"]:
            assert backend.encode(text, add_special_tokens=False).ids == ids.tolist()


def test_the_end_token_is_named_or_known(texts, tmp_path):
    file = tmp_path / "tokenizer.json"
    byte_level(special=["<pad>", "</s>", "<stop>"]).save(str(file))
    folder = texts / "deep/er"
    assert data.build(folder, tmp_path / "a", tokenizer=file, validation=0)["end"] == 257
    assert data.build(folder, tmp_path / "b", tokenizer=file, validation=0, end="<stop>")["end"] == 258


def test_progress_rises_to_its_total(texts, tmp_path):
    seen = {}
    data.build(
        texts, tmp_path / "corpus", vocabulary=300,
        progress=lambda what, done, total: seen.setdefault(what, []).append((done, total)),
    )  # fmt: skip
    assert list(seen) == ["reading texts", "training the tokenizer", "writing ids"]
    for what, calls in seen.items():
        done = [call[0] for call in calls]
        assert done == sorted(done) and len({call[1] for call in calls}) == 1, what
        assert calls[-1][0] == calls[-1][1], what


# Refusals


def refusal(tmp_path, paths, code, **options):
    before = sorted(tmp_path.iterdir())
    options = {"vocabulary": 300, **options}
    with pytest.raises(sv.Error) as caught:
        data.build(paths, tmp_path / "refused", **options)
    assert caught.value.code == code, caught.value
    assert len(str(caught.value)) < 1000
    assert sorted(tmp_path.iterdir()) == before
    return caught.value


def test_text_that_is_none(texts, tmp_path):
    binaries = tmp_path / "binaries"
    binaries.mkdir()
    assert "no files" in str(refusal(tmp_path, binaries, "E_VALUE"))
    assert "no files" in str(refusal(tmp_path, [], "E_VALUE"))
    (binaries / "a").write_bytes(bytes(100))
    (binaries / "b").write_bytes(b"\xff")
    assert "1 binary, 1 not UTF-8" in str(refusal(tmp_path, binaries, "E_VALUE"))
    assert "1 binary" in str(refusal(tmp_path, [binaries / "a"], "E_VALUE"))
    gone = tmp_path / "gone"
    assert refusal(tmp_path, [texts, gone], "E_PATH").file == str(gone)
    assert "something else" in refusal(tmp_path, texts / "pipe", "E_PATH").found
    single = tmp_path / "single.txt"
    single.write_text("10")  # its SHA-256 begins with 4a44
    assert "all 1 documents fell on the validation side" in str(refusal(tmp_path, single, "E_VALUE", validation=0.3))
    assert data.build(single, tmp_path / "made", vocabulary=300, validation=0.2)["vocabulary"] == 257


def test_a_file_that_cannot_be_read_is_counted(texts, tmp_path, monkeypatch):
    def closed(path, *rest):
        if str(path).endswith("/9.txt"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *rest)

    monkeypatch.setattr(documents, "open", closed, raising=False)
    record = data.build(texts / "deep", tmp_path / "corpus", vocabulary=300)
    assert record["skipped"]["unreadable"] == 1


def test_numbers_out_of_range(texts, tmp_path):
    for vocabulary in (-1, 0, 256, 10**6 + 1):
        assert refusal(tmp_path, texts, "E_VALUE", vocabulary=vocabulary).key == "vocabulary"
    for validation in (-0.1, 1.0, float("nan"), float("inf")):
        assert refusal(tmp_path, texts, "E_VALUE", validation=validation).key == "validation"
    refusal(tmp_path, texts, "E_VALUE", vocabulary=None)
    refusal(tmp_path, texts, "E_VALUE", vocabulary=300, tokenizer=tmp_path / "any.json")
    assert refusal(tmp_path, texts, "E_VALUE", end="</s>").key == "end"


def test_tokenizers_that_cannot_serve(texts, tmp_path):
    file = tmp_path / "tokenizer.json"

    def refused(code, **options):
        return refusal(tmp_path, texts, code, vocabulary=None, tokenizer=file, **options)

    refused("E_PATH")
    for content in (b"", b"{", b"{}", b'{"model": 1}'):
        file.write_bytes(content)
        assert refused("E_FORMAT").file == str(file)
    file.write_bytes(b"\xff")
    refused("E_UTF8")
    byte_level(special=["<pad>"]).save(str(file))
    assert "<pad>" in str(refused("E_CONFIG"))
    assert "</s>" in str(refused("E_CONFIG", end="</s>"))
    marking = byte_level()
    marking.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    marking.save(str(file))
    assert "beginning of a text" in str(refused("E_CONFIG"))
    joining = byte_level()
    joining.normalizer = tokenizers.normalizers.Strip()
    joining.save(str(file))
    refused("E_CONFIG")


def test_a_destination_that_is_taken_is_left(texts, corpus, tmp_path):
    taken = tmp_path / "refused"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    # Before anything is read.
    refusal(tmp_path, texts, "E_PATH", progress=lambda *_: pytest.fail("it has begun"))
    assert files_of(taken) == {"mine": b"mine"}
    shutil.rmtree(taken)
    taken.write_text("a file")
    refusal(tmp_path, texts, "E_PATH")
    with pytest.raises(sv.FileError, match="E_PATH"):
        data.build(texts / "deep", tmp_path / "none/corpus", vocabulary=300)


def test_a_file_that_changes_meanwhile(texts, tmp_path):
    copy = tmp_path / "texts"
    shutil.copytree(texts / "deep", copy)
    for change in (
        lambda path: path.write_text("Another text."), lambda path: path.write_bytes(b"\0"),
        lambda path: path.unlink(), lambda path: path.write_text(""),
    ):  # fmt: skip
        path = sorted(copy.glob("*.txt"))[0]

        def meanwhile(what, done, total, path=path, change=change):
            if what == "reading texts" and done == total and path.exists():
                change(path)

        caught = refusal(tmp_path, copy, "E_STATE", progress=meanwhile)
        assert caught.file == str(path) and "build again" in str(caught)
        path.write_text(words(10, 1))


def damage(folder, name, change):
    content = bytearray((folder / name).read_bytes())
    change(content)
    (folder / name).write_bytes(content)


def test_damage_is_found_and_named(corpus, tmp_path, capsys):
    def out_of_vocabulary(content):
        content[20:22] = (VOCABULARY).to_bytes(2, "little")

    rows = [
        ("corpus.json", lambda content: content.clear(), False, "E_JSON"),
        ("corpus.json", lambda content: content.__delitem__(slice(-5, None)), False, "E_JSON"),
        ("corpus.json", lambda content: content.__setitem__(slice(0, None), content.replace(b'"end"', b'"End"')), False,
         "E_SCHEMA"),
        ("corpus.json", lambda content: content.__setitem__(slice(0, None), content.replace(b'"end": 0', b'"end": 1')),
         False, "E_STATE"),
        ("train.bin", lambda content: content.pop(), False, "E_SIZE"),
        ("validation.bin", lambda content: content.append(0), False, "E_SIZE"),
        ("train.bin", out_of_vocabulary, True, "E_STATE"),
        ("validation.bin", lambda content: content.__setitem__(7, content[7] ^ 1), True, "E_STATE"),
        ("tokenizer.json", lambda content: content.append(10), True, "E_STATE"),
    ]  # fmt: skip
    for i, (name, change, verify, code) in enumerate(rows):
        broken = tmp_path / str(i)
        shutil.copytree(corpus, broken)
        damage(broken, name, change)
        options = ["--verify"] if verify else []
        if verify:
            assert cli.main(["data", "show", str(broken)]) == 0
            capsys.readouterr()
        assert cli.main(["data", "show", str(broken), *options]) == 1, (name, code)
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert f"{code}: the corpus is damaged" in said.err or (code == "E_JSON" and code in said.err), said.err
        assert str(broken / name) in said.err, said.err

    broken = tmp_path / "6"
    with pytest.raises(sv.InvalidError) as caught:
        sv.Corpus.open(broken).read("train", [1], 6)
    assert caught.value.code == "E_FORMAT" and caught.value.offset == 20
    assert caught.value.file == str(broken / "train.bin") and caught.value.found == str(VOCABULARY)
    assert cli.main(["data", "show", str(tmp_path / "none")]) == 1
    assert "E_PATH" in capsys.readouterr().err


# Interruptions


@pytest.mark.parametrize("stage", ["reading texts", "training the tokenizer", "writing ids"])
def test_an_interruption_leaves_nothing(texts, tmp_path, stage):
    calls = 0

    def interrupt(what, done, total):
        nonlocal calls
        calls += what == stage
        if what == stage and calls == 2:
            if stage == "writing ids":
                assert [path.name for path in tmp_path.iterdir()] != []  # something is there to be removed
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        data.build(texts, tmp_path / "corpus", vocabulary=300, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def open_files(process: int) -> list[str]:
    paths = []
    for link in pathlib.Path(f"/proc/{process}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed since
            paths.append(os.readlink(link))
    return paths


def test_the_command_is_interrupted_at_any_moment(tmp_path):
    source, out = tmp_path / "texts", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for i in range(40):
        (source / f"{i}.txt").write_text(words(10_000, i))
    command = [sys.executable, "-m", "scalevec", "data", "build", source, "--vocab", "1000", "-o", out / "corpus"]
    statuses = []
    for wait in (0.0, 0.3, 1.0):
        process = subprocess.Popen(
            [*map(str, command), "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # From when it reads texts: before, Python itself is at work.
        while process.poll() is None and not any(path.startswith(str(source)) for path in open_files(process.pid)):
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        statuses.append(process.returncode)
        left = [path.name for path in out.iterdir()]
        if process.returncode == 0:
            assert left == ["corpus"]
            data.describe(out / "corpus", verify=True)
            shutil.rmtree(out / "corpus")
        else:
            assert process.returncode == 130 and left == [] and "Traceback" not in said, said
    assert 130 in statuses


# The command


def test_the_command_says_what_it_made(texts, tmp_path, capsys):
    folder = tmp_path / "corpus"
    words_given = ["data", "build", str(texts), "--vocab", "500", "-o", str(folder)]
    assert cli.main(words_given) == 0
    said = capsys.readouterr()
    record = data.describe(folder)
    assert said.err == ""
    assert cli.main(["data", "show", str(folder), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert said.out == f"{shown}written: {folder}\n"
    for side, split in record["splits"].items():
        line = next(line for line in shown.splitlines() if line.startswith(side))
        assert line.split()[1:4] == [f"{split[key]:,}" for key in ("documents", "bytes", "ids")]
        assert float(line.split()[4]) == pytest.approx(split["bytes"] / split["ids"], abs=5e-4)
    assert "skipped: 3 binary, 1 damaged gzip, 2 duplicate" in shown and record["digest"] in shown
    assert "from some texts: " in shown

    assert cli.main(["data", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    assert cli.main(words_given) == 1  # taken
    assert re.fullmatch(r"scalevec: E_PATH: .*\n", capsys.readouterr().err)
    for wrong in (["--tokenizer", "t.json"], []):
        given = words_given if wrong else ["data", "build", str(texts), "-o", str(folder)]
        assert cli.main([*given, *wrong]) == 2
        assert "either --vocab N" in capsys.readouterr().err
    assert cli.main(["data", "build", str(texts), "--vocab", "9", "-o", str(tmp_path / "new")]) == 1
    assert "E_VALUE" in capsys.readouterr().err


def test_the_command_warns_of_little_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("aaaa bbbb aaaa bbbb")
    given = [
        "data",
        "build",
        str(tmp_path / "a.txt"),
        "--vocab",
        "5000",
        "-o",
        str(tmp_path / "c"),
        "--validation",
        "1e-9",
    ]
    assert cli.main([*given, "--json"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["vocabulary"] < 300 and f"vocabulary of {record['vocabulary']} only, not 5000" in said.err
    assert "nothing to validate on" in said.err


def test_data_commands_take_the_common_options(corpus, capsys):
    assert cli.main(["data", "show", str(corpus), "--seed", "3", "--dtype", "bfloat16"]) == 0
    assert cli.main(["data", "show", str(corpus), "--device", "abacus"]) == 1
    assert cli.main(["data", "build", str(corpus), "-o", "x", "--vocab", "300", "--dtype", "float8"]) == 1
    capsys.readouterr()


PEAK = """
import resource, sys
from scalevec import data
data.build(sys.argv[1], sys.argv[2], vocabulary=1000, validation=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_text(tmp_path):
    peaks = []
    lines = words(400_000, 1)
    for size in (2, 8):
        text = tmp_path / f"{size}.txt"
        with text.open("w") as out:
            for i in range(size):
                out.write(f"{lines}{i}\n")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(text), str(tmp_path / f"corpus{size}")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    # One document; its tokens alone, were they held at once, would take a hundred bytes each.
    assert peaks[1] - peaks[0] < 24 << 20, peaks


# What is drawn


def test_a_synthetic_source_and_an_order():
    corpus = sv.Corpus.synthetic(vocabulary=20, order=2, concentration=0.5, seed=3)
    ids = corpus.read("train", list(range(200)), 500)
    assert ids.shape == (200, 501) and ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < 20
    assert torch.equal(corpus.read("train", [7], 500)[0], ids[7])
    # The entropy of the next id from counts of all triples, which are many for each pair: 100,000 for 8,000.
    counts = np.zeros((20, 20, 20))
    values = ids.numpy()
    np.add.at(counts, (values[:, :-2], values[:, 1:-1], values[:, 2:]), 1)
    rows = counts.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(counts > 0, np.log(counts / rows), 0)
    empirical = -(counts * logs).sum() / counts.sum()
    # Counts flatter themselves: by (cells - rows) / 2n nats to first order, here 7,600 / 199,000 at most.
    assert empirical < corpus.entropy() + 0.01
    assert empirical > corpus.entropy() - 0.06
    assert corpus.entropy(1) > corpus.entropy(100) > corpus.entropy()

    order = sv._scalevec.WindowOrder(1000, 5)
    epochs = [[order.at(epoch * 1000 + i) for i in range(1000)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1000)) and epochs[0] != epochs[1]
    with pytest.raises(sv.InvalidError, match="E_VALUE"):
        sv.Corpus.synthetic(vocabulary=1)
