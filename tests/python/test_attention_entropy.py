"""Entropy of attention (metric 38)."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import _scalevec as core
from tiny_training import experiment, loss_of, tiny_module


def entropy_of_attention(folder: pathlib.Path, address: str, ids: torch.Tensor) -> float:
    """Of the queries that a norm of a saved model gives, by transformers' rotary embedding and a softmax."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    model, tokens = sv.load(folder), ids.shape[1]
    spec = json.loads((folder / "config.json").read_text())
    base = spec["layers"][0]["layer"]["attn"]["rope"]["base"]
    angles = torch.arange(tokens).double()[:, None] * base ** -(torch.arange(0, 8, 2) / 8).double()
    cos, sin = (f(torch.cat([angles, angles], 1))[None] for f in (torch.cos, torch.sin))
    layer, norm = address.rsplit(".attn.q", 1)
    addresses = [f"{layer}.attn.{of}{norm}" for of in "qk"]
    with model.taps(f"{layer}.attn.**", "scaled") as taps:
        model.logits(ids)
    q, k = (taps[a].scaled[0].double().reshape(1, tokens, -1, 8).transpose(1, 2) for a in addresses)
    q, k = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    entropy = float(torch.special.entr(scores.softmax(-1)).sum(-1).mean())
    assert 0 < entropy < np.mean(np.log(np.arange(1, tokens + 1))) - 1e-6
    return entropy


@pytest.mark.parametrize(("strategy", "norm"), [("gemma", ".q_norm"), ("unified", ".q.output_norm")])
def test_entropy_of_attention(tmp_path: pathlib.Path, strategy: str, norm: str) -> None:
    """Of the model as saved before the step."""
    training = core.Training(experiment(every=2, strategy=strategy))
    training.save_model(tmp_path / "model0")
    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=lambda _: None)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    source = core.Corpus.synthetic(vocabulary=37, order=1, concentration=0.1, seed=0)
    order = core.WindowOrder(source.windows("train", 16), 0)
    ids = source.read("train", [order.at(0)], 16)[:, :-1]
    seen = 0
    for site in trace.sites:
        found = trace["attention_entropy", site.address]
        assert np.isfinite(found).all() == site.address.endswith(norm)
        if not site.address.endswith(norm):
            continue
        assert found[0] == pytest.approx(entropy_of_attention(tmp_path / "model0", site.address, ids), rel=1e-6)
        assert len(set(found)) == len(found)
        seen += 1
    assert seen == 2


def test_entropy_of_attention_of_a_module(tmp_path: pathlib.Path) -> None:
    """The first text of the first batch stands for the step."""
    model = tiny_module("gemma", width=32, kv_heads=2)
    random = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = [torch.randint(0, 41, (2, 13), generator=random) for _ in range(3)]
    expected = []
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        for step in (1, 2):
            model.save(tmp_path / f"model{step}")
            for ids in batches[step - 1 :]:
                loss_of(model, ids).backward()
            optimizer.step()
            tracer.step()
            first = batches[step - 1][:1, :-1]
            expected.append(
                [entropy_of_attention(tmp_path / f"model{step}", f"layers.{i}.attn.q_norm", first) for i in (0, 1)]
            )
    trace = sv.open_trace(tmp_path / "run.h5")
    found = np.stack([trace["attention_entropy", f"layers.{i}.attn.q_norm"] for i in (0, 1)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(np.unique(found)) == 4


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("gemma", "kv_heads = 1"), ("gemma", "head_dim = 32"), ("unified", "kv_heads = 1"), ("dnp[k]", "kv_heads = 1")],
)
def test_entropy_where_heads_are_one_or_norms_are_not_two(tmp_path: pathlib.Path, strategy: str, more: str) -> None:
    text = experiment(every=1, strategy=strategy, steps=2).toml()
    name = more.split(" = ")[0]
    text = "\n".join(more if line.startswith(f"{name} = ") else line for line in text.splitlines())
    training = core.Training(core.Experiment.parse(text))
    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=lambda _: None)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    found = trace["attention_entropy"]
    there = [strategy != "dnp[k]" and site.address.endswith(("q_norm", ".q.output_norm")) for site in trace.sites]
    assert np.isfinite(found).all(0).tolist() == there and any(there) == (strategy != "dnp[k]")
    assert (found[:, there] > 0).all() and (found[:, there] < math.log(16)).all()
