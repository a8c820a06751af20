"""What the maps behind norms read (metric 33): second moments, their condition with and without the vector."""

from __future__ import annotations

import pathlib
import re
import tomllib

import h5py
import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import _scalevec as core
from tiny_training import effective, experiment, final_norm_tracer, masters, optimizers_of, tiny_llama

ROOT = pathlib.Path(__file__).resolve().parents[2]


def moments(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return rows.T @ rows / len(rows)


def condition(s: np.ndarray) -> float:
    values = np.linalg.eigvalsh(s)
    return float(values[-1] / values[0])


def compare(trace, address: str, row: int, s: np.ndarray, g: np.ndarray) -> None:
    # An input is some 4 roundings of float32 off, its square 8, the column's own storage one more.
    np.testing.assert_allclose(trace["input_moment", address][row], np.diag(s), rtol=9 * 2**-24)
    # Inputs are float32: an eigenvalue moves by some 1e-7 of the largest.
    for column, matrix in (("input_condition", s), ("scaled_input_condition", s * np.outer(g, g))):
        expected = condition(matrix)
        assert 1.5 < expected < 1e5
        assert trace[column, address][row] == pytest.approx(expected, rel=1e-6 + 4e-7 * expected), (column, address)
    gap = np.std(np.log(g**2 * np.diag(s)))
    assert trace["jacobi_gap", address][row] == pytest.approx(gap, abs=2 * 9 * 2**-24)


def with_inputs(strategy: str, inputs: bool) -> core.Experiment:
    text = experiment(every=2, strategy=strategy).toml()
    for old, new in (
        ("context = 16", "context = 64"),
        ("micro_batch = 0", "micro_batch = 2"),
        ("inputs = false", f"inputs = {str(inputs).lower()}"),
    ):
        assert old in text
        text = text.replace(old, new)
    return core.Experiment.parse(text)


@pytest.mark.parametrize("strategy", ["standard", "hg+or", "gemma"])
def test_inputs_of_a_training(tmp_path: pathlib.Path, strategy: str) -> None:
    """The first norm's are rows of the embedding, by the ids of the step's windows."""
    made = with_inputs(strategy, True)
    fields = tomllib.loads(made.toml())
    training = core.Training(made)
    states = [masters(training)]
    core.run_training(
        training, tmp_path / "run", resume=False, command="t", on_step=lambda _: states.append(masters(training))
    )
    source = {key: fields["data"][key] for key in ("vocabulary", "order", "concentration", "seed")}
    corpus = sv.Corpus.synthetic(**source)
    order = core.WindowOrder(corpus.windows("train", 64), fields["seed"])
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    assert trace.steps.tolist() == [1, 2, 4, 6]
    eps = trace.sites[0].eps
    read = [site.address for site in trace.sites if re.search(r"input_norm|final_norm", site.address)]
    of_first = [address for address in read if address.startswith("layers.0.attn")]
    assert len(of_first) == (4 if strategy == "hg+or" else 1) - ("layers.0.attn.input_norm" not in read)
    for row, step in enumerate(trace.steps):
        ids = corpus.read("train", [order.at(4 * (step - 1) + i) for i in range(4)], 64)[:, :-1]
        x = states[step - 1]["embed.weight"].double()[ids]
        s = moments((x / (x.square().mean(-1, keepdim=True) + eps).sqrt()).numpy())
        for address in of_first:
            compare(trace, address, row, s, effective(states[step - 1], address))
    for site in trace.sites:
        here = np.isfinite(trace["input_moment", site.address]).all()
        assert here == (site.address in read), site.address
    with h5py.File(tmp_path / "run/inputs.h5") as file:  # S itself, of the last row
        assert list(file["inputs"]) == read and file["inputs"].attrs["step"] == 6
        assert [a.decode() for a in file["sites/address"][()]] == [site.address for site in trace.sites]
        for address in read:
            whole = file[f"inputs/{address}/moments"][()]
            assert whole.dtype == np.float64 and np.array_equal(whole, whole.T)
            np.testing.assert_allclose(np.diag(whole), trace["input_moment", address][-1], rtol=2**-24)
            assert condition(whole) == pytest.approx(trace["input_condition", address][-1], rel=1e-9)
        for address in of_first:
            np.testing.assert_allclose(file[f"inputs/{address}/moments"][()], s, rtol=0, atol=9 * 2**-24 * np.max(s))
    # Validation, between the steps, is not seen; and who looks changes nothing.
    plain = core.Training(with_inputs(strategy, False))
    core.run_training(plain, tmp_path / "plain", resume=False, command="t", on_step=lambda _: None)
    for slot, tensor in masters(plain).items():
        assert torch.equal(tensor, states[-1][slot]), slot
    assert "input_moment" not in sv.open_trace(tmp_path / "plain/trace.h5").columns
    assert not (tmp_path / "plain/inputs.h5").exists()


def test_inputs_of_a_pytorch_loop(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    norms = {"layers.0.attn.input_norm": model.model.layers[0].input_layernorm, "final_norm": model.model.norm}
    norms["layers.1.mlp.input_norm"] = model.model.layers[1].post_attention_layernorm
    given: dict[str, list[np.ndarray]] = {}
    for address, norm in norms.items():
        with torch.no_grad():
            norm.weight.mul_(torch.linspace(0.5, 2, 32))
        norm.register_forward_hook(
            lambda module, _, out, at=address: given.setdefault(at, []).append((out / module.weight).detach().numpy())
        )
    optimizers = optimizers_of(model, "sgd")
    generator = torch.Generator().manual_seed(1)
    with sv.trace(model, optimizers, tmp_path / "run.h5", every=3, inputs=True) as tracer:
        for _step in (1, 2, 3):
            with torch.no_grad():
                model(input_ids=torch.zeros(4, 4, dtype=torch.long))  # no training
            given.clear()
            weights = {address: norm.weight.detach().double().numpy().copy() for address, norm in norms.items()}
            for _ in range(2):  # a gradient of two passes
                ids = torch.randint(0, 41, (6, 40), generator=generator)
                model(input_ids=ids, labels=ids).loss.backward()
            optimizers[0].step()
            tracer.step()
            model.zero_grad()
            if _step != 2:  # a row
                for address, seen in given.items():
                    x = np.concatenate(seen).reshape(-1, 32).astype(np.float64)
                    whole = tracer.input_moments(address).numpy()
                    np.testing.assert_allclose(whole, x.T @ x / len(x), rtol=0, atol=1e-6)
                    assert np.abs(whole - np.diag(np.diag(whole))).max() > 1e-3
        with pytest.raises(sv.Error, match="no vector"):
            tracer.input_moments("final_norms")
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == [1, 3]
    for address in norms:
        assert len(given[address]) == 2
        compare(trace, address, 1, moments(np.concatenate(given[address])), weights[address])
    assert np.isfinite(trace["input_condition", "layers.1.attn.input_norm"]).all()


@pytest.mark.parametrize(("strategy", "experts"), [("gemma", 0), ("hg+or", 0), ("gemma", 5)])
def test_inputs_of_a_module(tmp_path: pathlib.Path, strategy: str, experts: int) -> None:
    """Against what a model of the saved file shows of its norms; before a mixture of all tokens, whoever they go to."""
    sizes = {"experts": experts, "active": 2, "expert_inner": 12} if experts else {}
    model = sv.Module.new(
        strategy, vocabulary=41, width=32, layers=2, head_dim=8, kv_heads=2, inner=48, context=64, **sizes
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    addresses = ["layers.0.attn.input_norm[q]" if strategy == "hg+or" else "layers.0.mlp.input_norm", "final_norm"]
    seen = {}
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=3, inputs=True) as tracer:
        for step in (1, 2, 3):
            model.save(tmp_path / f"model{step}")
            batches = [torch.randint(0, 41, (6, 40), generator=generator) for _ in range(2)]
            with torch.no_grad():
                model(torch.zeros(4, 4, dtype=torch.long))  # no training
            for ids in batches:
                torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            tracer.step()
            optimizer.zero_grad()
            if step == 2:
                continue
            loaded = sv.load(tmp_path / f"model{step}")
            for address in addresses:
                with loaded.taps(address, "normalized") as taps:
                    for ids in batches:
                        loaded.logits(ids[:, :-1])
                x = torch.cat([t.flatten(0, 1) for t in taps[address].normalized]).numpy()
                seen[step, address] = (moments(x), np.asarray(loaded.scales[address].effective))
                np.testing.assert_allclose(tracer.input_moments(address).numpy(), seen[step, address][0], atol=1e-6)
    model(batches[0])  # the trace is closed
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == [1, 3]
    for (step, address), (s, g) in seen.items():
        compare(trace, address, (1, 3).index(step), s, g)
    assert len(seen) == 4


def tracer_of(path: pathlib.Path, width: int) -> tuple[core.Tracer, torch.Tensor]:
    stored = torch.linspace(0.5, 2, width)
    return final_norm_tracer(path, stored, inputs=True), stored


def one_row(tracer: core.Tracer, *inputs: torch.Tensor) -> None:
    for x in inputs:
        tracer.see("final_norm", x)
    tracer.before(1, lambda _: {"rule": "other"})
    tracer.after(1, lambda _: {"rule": "other"})
    assert tracer.close() == ""


def test_fewer_tokens_than_channels_are_singular_and_wide_inputs_keep_their_diagonal(tmp_path: pathlib.Path) -> None:
    random = torch.Generator().manual_seed(2)
    tracer, _ = tracer_of(tmp_path / "few.h5", 24)
    one_row(tracer, torch.randn(2, 11, 24, generator=random))
    few = sv.open_trace(tmp_path / "few.h5")
    assert few["input_condition", "final_norm"][0] == few["scaled_input_condition", "final_norm"][0] == np.inf
    assert np.isfinite(few["jacobi_gap", "final_norm"][0])

    x = torch.randn(40, 2049, generator=random)
    tracer, g = tracer_of(tmp_path / "wide.h5", 2049)
    one_row(tracer, x[:10], x[10:])
    wide = sv.open_trace(tmp_path / "wide.h5")
    diagonal = x.double().square().mean(0).numpy()
    tracer.save_inputs(tmp_path / "inputs.h5")
    with h5py.File(tmp_path / "inputs.h5") as file:
        np.testing.assert_allclose(file["inputs/final_norm/moments"][()], diagonal, rtol=1e-12)
    np.testing.assert_allclose(wide["input_moment", "final_norm"][0], diagonal, rtol=1e-6)
    assert np.isnan(wide["input_condition", "final_norm"][0])
    expected = np.std(np.log(g.double().numpy() ** 2 * diagonal))
    assert wide["jacobi_gap", "final_norm"][0] == pytest.approx(expected, rel=1e-9)

    # What is not finite is told as such, and ends nothing.
    tracer, _ = tracer_of(tmp_path / "nan.h5", 16)
    one_row(tracer, torch.full((40, 16), float("nan")))
    lost = sv.open_trace(tmp_path / "nan.h5")
    assert np.isnan(lost["input_condition", "final_norm"][0]) and np.isnan(lost["input_moment", "final_norm"][0]).all()

    # Jacobi's scaling, to the channel.
    tracer, g = tracer_of(tmp_path / "jacobi.h5", 16)
    x = torch.randn(500, 16, generator=random, dtype=torch.float64)
    one_row(tracer, x / x.square().mean(0).sqrt() / g)
    assert sv.open_trace(tmp_path / "jacobi.h5")["jacobi_gap", "final_norm"][0] < 1e-7


def test_misuse_is_told(tmp_path: pathlib.Path) -> None:
    tracer, _ = tracer_of(tmp_path / "a.h5", 8)
    for address, x, code in (("final_norms", torch.ones(2, 8), "E_ADDR"), ("final_norm", torch.ones(2, 9), "E_SHAPE")):
        with pytest.raises(sv.Error) as caught:
            tracer.see(address, x)
        assert caught.value.code == code
    with pytest.raises(sv.Error, match="E_STATE"):
        tracer.input_moments("final_norm")
    with pytest.raises(sv.Error, match="E_STATE"):
        tracer.save_inputs(tmp_path / "inputs.h5")
    assert not (tmp_path / "inputs.h5").exists()
    tracer.close()
    model = tiny_llama()
    with pytest.raises(ValueError, match="inputs=True"):
        sv.trace(model, optimizers_of(model, "sgd"), tmp_path / "b.h5", vectors=[], inputs=True)
    assert not (tmp_path / "b.h5.live").exists()


def test_moments_are_of_the_last_row_or_none(tmp_path: pathlib.Path) -> None:
    tracer, _ = tracer_of(tmp_path / "a.h5", 8)
    for step in (1, 2):
        if step == 1:
            tracer.see("final_norm", torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
        tracer.before(step, lambda _: {"rule": "other"})
        tracer.after(step, lambda _: {"rule": "other"})
        if step == 1:
            assert tracer.input_moments("final_norm").shape == (8, 8)
    with pytest.raises(sv.Error, match="E_STATE"):
        tracer.save_inputs(tmp_path / "inputs.h5")
    tracer.close()
    assert np.isfinite(sv.open_trace(tmp_path / "a.h5")["jacobi_gap", "final_norm"]).tolist() == [True, False]


def test_a_disk_that_refuses_inputs_ends_no_training(tmp_path: pathlib.Path) -> None:
    def in_the_way(event: dict) -> None:
        if event["step"] == 1:
            (tmp_path / "run/inputs.h5").mkdir()

    run = sv.train(with_inputs("standard", True), tmp_path / "run", on_step=in_the_way)
    assert run.finished and "inputs.h5" in run.log_error
    assert (run.model / "model.safetensors").exists() and list(tmp_path.glob("run/checkpoints/step-*6"))


def test_a_trace_goes_on_with_its_own_columns(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracer = sv.trace(model, optimizer, tmp_path / "run.h5", every=1)
    ids = torch.arange(40).reshape(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tracer.step()
    state = tracer.state_dict()
    tracer.close()
    with pytest.raises(sv.Error, match=r"E_STATE.*lacks column 'input_moment'"):
        sv.trace(model, optimizer, tmp_path / "run.h5", every=1, inputs=True, resume=state)


def test_the_document_lists_every_column() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$", (ROOT / "docs/trace_metrics.md").read_text(), re.M
    )
    told = [(name, unit, per, what.replace("&#124;", "|")) for name, per, unit, what in rows]
    assert told == [tuple(row) for row in core.tracer_columns()]
