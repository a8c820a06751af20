"""Corpora: every id against the documents and against `tokenizers` itself, sides that stay, what is drawn."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import scalevec as sv
import tokenizers
import torch
from corpora import SKIPPED, STRANGE, VOCABULARY, byte_level, documents_of, files_of, ids_by_document, words
from scalevec import data, documents


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
