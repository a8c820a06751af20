"""`scalevec data`: what it says, and that its memory does not grow with the text."""

import json
import re
import subprocess
import sys

import pytest
from corpora import words
from scalevec import cli, data


def test_the_command_says_what_it_made(texts, tmp_path, capsys):
    folder = tmp_path / "corpus"
    words_given = ["data", "build", str(texts), "--vocab", "500", "-o", str(folder)]
    assert cli.main(words_given) == 0
    said = capsys.readouterr()
    record = data.describe(folder)
    assert said.err == ""
    assert cli.main(["data", "show", str(folder), "--verify"]) == 0
    shown = capsys.readouterr().out
    *facts, verified = shown.splitlines(keepends=True)
    assert verified.startswith("verified") and said.out == f"{''.join(facts)}written: {folder}\n"
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
    assert cli.main(["data", "build", str(texts), "--vocab", "9", "-o", str(tmp_path / "new")]) == 2
    assert "--vocab" in capsys.readouterr().err


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
    assert cli.main(["data", "show", str(corpus), "--device", "abacus"]) == 2
    assert cli.main(["data", "build", str(corpus), "-o", "x", "--vocab", "300", "--dtype", "float8"]) == 2
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
