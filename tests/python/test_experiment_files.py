"""docs/experiment_files.md says what the parsers do: its example, its fields, its words."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest
import scalevec as sv
from scalevec import _scalevec, experiments

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "experiment_files.md").read_text(encoding="utf-8")


def table(first_head: str) -> dict[str, list[str]]:
    """A table of the document, by the first column: the words in code of each other column."""
    lines = TEXT[TEXT.index(f"| {first_head} |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")] for line in lines]
    return {row[0][0]: row[1:] for row in rows}


def config_of(strategy: str) -> dict[str, Any]:
    return json.loads(_scalevec.make_config(strategy))


def refusal_of(strategy: str) -> str:
    with pytest.raises(sv.InvalidError) as caught:
        config_of(strategy)
    assert caught.value.code == "E_VALUE"
    return str(caught.value)


def test_the_example_is_a_plan(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)[0])
    plan = experiments.read_plan(file)
    points = [f", rule {rule}" for rule in ("adamw", "muon")]
    assert plan.name == "output vectors" and plan.seeds == [0, 1, 2]
    assert plan.baseline == {
        arm + point: against and against + point
        for point in points
        for arm, against in (("plain", None), ("DP", "plain"), ("DNP", "DP"))
    }
    fields = plan.arms["DNP, rule muon"]
    assert fields["optimizer.decay.input"] == 0.0 and fields["optimizer.decay.output"] == 0.1
    assert fields["optimizer.rule"] == "muon" and fields["train.steps"] == 200
    assert "optimizer.decay.output" not in plan.arms["DP, rule muon"]  # it inherits from base, not from an arm


def test_an_arm_wins_over_the_grid_and_the_grid_over_base(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        "seeds = [0]\nbase.train.steps = 1\narms.own.train.steps = 3\narms.free = {}\ngrid.train.steps = [2]\n"
    )
    plan = experiments.read_plan(file)
    assert {arm: fields["train.steps"] for arm, fields in plan.arms.items()} == {"own, steps 2": 3, "free, steps 2": 2}
    assert plan.name == "plan" and plan.baseline == {"own, steps 2": None, "free, steps 2": "own, steps 2"}


def test_the_fields_are_the_parsers(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text("extra = 1\n")
    with pytest.raises(ValueError, match="unknown 'extra'; there are ") as caught:
        experiments.read_plan(file)
    assert list(table("field")) == str(caught.value).split("there are ")[1].split(", ")
    known = {field[0] for field in _scalevec.experiment_fields()}
    for field in re.findall(r"`((?:model|data|optimizer|schedule|train|trace)\.(?!h5)\w+)`", TEXT):
        assert field in known, field


def test_the_strategies_are_the_parsers() -> None:
    words, parts = table("word"), table("part")
    known = re.search(r"known are (.*) joined by", refusal_of("nonsense"))
    assert known and {*words, *parts} == set(re.findall(r"[a-z-]+", known[1]))
    for word in words:
        config_of(word)
        for part in parts:
            refusal_of(f"{word}+{part}")  # alone, as the document says
    for part, (_, allowed, usual) in parts.items():
        config_of(part)
        if allowed == []:
            assert "takes no branches" in refusal_of(f"{part}[q]")
            continue
        branches, otherwise = (
            (parts["ap"][i] if column == ["ap"] else column) for i, column in ((1, allowed), (2, usual))
        )
        said = re.search(r"has no branch 'nonsense' but ([\w, ]+);", refusal_of(f"{part}[nonsense]"))
        assert said and said[1].split(", ") == branches
        assert config_of(part) == config_of(f"{part}[{','.join(otherwise or branches)}]")
    for together in ("ap+dp", "ap+dnp", "dp+dnp", "or+er", "or+er-input", "or-input+er", "or+or-input"):
        refusal_of(together)
    refusal_of("hg[q, k]")  # with a blank


def test_what_the_document_says_of_strategies() -> None:
    assert config_of("unified") == config_of("hg+dnp+or") == config_of("or+dnp+hg")
    assert config_of("hg+ap") == config_of("ap") != config_of("hg+dp")
    head = config_of("ap")
    layer = head["layers"][0]["layer"]
    assert head["final_norm"]["width"] == layer["attn_input"]["width"] == layer["mlp_input"]["width"] == 0
    layer = config_of("dnp")["layers"][0]["layer"]
    heads = {branch: layer["attn"][branch]["output"] for branch in "qkv"}
    assert all(norm["group"] == layer["attn"]["head_dim"] < norm["width"] for norm in heads.values())
    assert layer["mlp"]["up"]["output"]["group"] == layer["mlp"]["up"]["output"]["width"]
    forms = config_of("hg+dp+or-input")
    layer = forms["layers"][0]["layer"]
    assert forms["final_norm"]["parametrisation"] == layer["mlp_input"]["parametrisation"] == "magnitude_direction"
    assert forms["head"]["output"]["parametrisation"] == layer["attn"]["q"]["output"]["parametrisation"] == "plain"
    layer = config_of("hg[q,k,v]+dp[v]")["layers"][0]["layer"]
    maps = {**{b: layer["attn"][b] for b in "qkvo"}, **{b: layer["mlp"][b] for b in ("gate", "up", "down")}}
    assert [b for b, m in maps.items() if m["own_vector"]] == ["q", "k", "v"]
    assert [b for b, m in maps.items() if m["output"]] == ["v"]
    layer = config_of("gemma")["layers"][0]["layer"]
    assert (
        layer["attn"]["q"]["output"]["width"] == layer["attn"]["head_dim"]
        and layer["attn_output"]
        and layer["mlp_output"]
    )
