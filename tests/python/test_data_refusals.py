"""Corpora: what is refused, damage that is found, interruptions that leave nothing."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import scalevec as sv
import tokenizers
from corpora import VOCABULARY, byte_level, files_of, words
from scalevec import cli, data, documents


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
