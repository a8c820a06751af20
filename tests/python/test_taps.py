"""Taps, overrides and reductions against forward hooks and float64 autograd of the transformers modules."""

import copy
import gc
import subprocess
import sys
import textwrap

import pytest
import scalevec as sv
import torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
IDS = (torch.arange(24) * 37 + 11) % 160
# Both sides run in float64, except that transformers takes cosines of float32 angles: at position 24 these are off by
# 24 * 2^-24 = 1.4e-6, which a few layers pass on about tenfold.
CLOSE = 2e-5


def close(ours, theirs, bound=CLOSE):
    theirs = theirs.detach()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    difference = (ours - theirs).abs().max().item()
    assert difference <= bound * theirs.abs().max().item()


def reference_of(tiny):
    """A float64 copy; its norms in plain float64, where transformers' own go through float32."""
    model = copy.deepcopy(tiny.model).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
            eps = module.eps if offset else module.variance_epsilon
            module.forward = lambda x, m=module, o=offset, e=eps: (
                x / torch.sqrt((x * x).mean(-1, keepdim=True) + e) * (o + m.weight)
            )
            module.weight.requires_grad_(True)
    return model


class Watched:
    """Input, output and the input's gradient of every norm module, by native name, from ordinary forward hooks."""

    def __init__(self, model, sites):
        self.input, self.output, self.gradient = {}, {}, {}
        self.modules = {site.native: model.get_submodule(site.native.removesuffix(".weight")) for site in sites}
        for native, module in self.modules.items():
            module.register_forward_hook(lambda _, args, out, n=native: self.see(n, args[0], out))

    def see(self, native, x, y):
        self.input[native], self.output[native] = x, y
        if x.requires_grad:
            x.register_hook(lambda g: self.gradient.__setitem__(native, g))


def heads_last(theirs, ours):
    """Gemma 3 norms q and k as (batch, heads, tokens, head_dim)."""
    return theirs if theirs.shape == ours.shape else theirs.transpose(1, 2)


@pytest.fixture(params=FAMILIES)
def pair(request, tiny_models):
    tiny = tiny_models[request.param]
    model = sv.load(tiny.file, dtype="float64")
    reference = reference_of(tiny)
    sites = [scale.site for scale in model.scales]
    return model, reference, Watched(reference, sites), sites


def test_taps_equal_forward_hooks(pair):
    model, reference, watched, sites = pair
    with torch.no_grad():
        reference(IDS[None])
        with model.taps("**") as seen:
            model.logits(IDS)
    assert seen.addresses == [site.address for site in sites]
    for site in sites:
        at, native = seen[site.address], site.native
        assert at.forwards == 1
        (x,), (rms,), (normalized,), (scaled,), (vector,) = at.input, at.rms, at.normalized, at.scaled, at.vector
        theirs = heads_last(watched.input[native], x)
        close(x, theirs)
        close(scaled, heads_last(watched.output[native], x))
        want = torch.sqrt((theirs * theirs).mean(-1, keepdim=True) + site.eps)
        close(rms, want)
        close(normalized, theirs / want)
        weight = watched.modules[native].weight.detach()
        assert torch.equal(vector, weight + 1.0 if site.offset else weight)


def test_gradients_equal_float64_autograd(pair):
    model, reference, watched, sites = pair
    torch.manual_seed(0)
    weights = torch.randn(1, len(IDS), 160, dtype=torch.float64)
    (reference(IDS[None]).logits * weights).sum().backward()
    for scale in model.scales:
        scale.stored.requires_grad_(True)
    with model.taps("**", "input_gradient", "vector_gradient") as seen:
        logits = model.logits(IDS)
    with model.reductions("**", "scaled", products=True) as saliency:
        again = model.logits(IDS)
    (logits * weights).sum().backward()
    (again * weights).sum().backward()
    first = True
    for site in sites:
        module = watched.modules[site.native]
        close(seen[site.address].vector_gradient[0], module.weight.grad)
        effective = module.weight.detach() + site.offset
        close(saliency.at(site.address, "scaled").product, effective * module.weight.grad)
        if first:  # unlike transformers' embedding, ours requires no gradients
            with pytest.raises(sv.InvalidError, match="nothing before this norm requires gradients"):
                _ = seen[site.address].input_gradient
            first = False
            continue
        ours = seen[site.address].input_gradient[0]
        close(ours, heads_last(watched.gradient[site.native], ours))


def test_an_override_is_the_module_with_other_weights(pair):
    model, reference, watched, sites = pair
    torch.manual_seed(1)
    lent = {}
    before = model.logits(IDS).detach()
    for site in sites:
        values = 1.0 + 0.3 * torch.randn(site.width, dtype=torch.float64)
        lent[site.address] = values
        with torch.no_grad():
            watched.modules[site.native].weight.copy_(values - site.offset)
    with torch.no_grad(), model.override(lent) as override:
        assert override.addresses == [site.address for site in sites]
        close(model.logits(IDS), reference(IDS[None]).logits)
    assert torch.equal(model.logits(IDS).detach(), before)


def test_base_runs_with_the_vectors_of_the_file(tiny_models):
    tiny = tiny_models["gemma3"]
    model = sv.load(tiny.file, dtype="float64")
    theirs = reference_of(tiny)(IDS[None]).logits
    with model.edit() as edit, model.override("layers.0.attn.input_norm", torch.zeros(32)), torch.no_grad():
        edit.rescale("final_norm", 3.0)
        changed = model.logits(IDS)
        with model.base() as base:
            close(model.logits(IDS), theirs)
            assert base.active and base.addresses == [g.address for g in model.scales]
            with model.override("final_norm", torch.zeros(32)):
                assert not model.logits(IDS).any()
        assert torch.equal(model.logits(IDS), changed) and not torch.allclose(changed, theirs, atol=0.1)


def test_a_lent_vector_learns(tiny_models):
    model = sv.load(tiny_models["gemma3"].file, dtype="float64")
    address = "layers.2.mlp.output_norm"
    leaf = torch.ones(32, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.05)
    losses = []
    with model.override(address, leaf), model.taps(address, "vector_gradient") as seen:
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model.logits(IDS[:-1])[0], IDS[1:])
            loss.backward()
            losses.append(loss.item())
            assert torch.equal(seen[address].vector_gradient[-1], leaf.grad)
            optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert model.scales[address].stored.grad is None


def test_reductions_equal_numpy_over_any_split(tiny_models):
    import numpy as np

    model = sv.load(tiny_models["qwen3"].file)
    rows = {}
    with model.taps("**", "scaled") as seen, torch.no_grad():
        with model.reductions("**", "scaled") as figures:
            model.logits(IDS[:5])
            model.logits(IDS[5:6])
        with model.reductions("**", "scaled") as rest:
            model.logits(IDS)
    figures.merge(rest)
    with model.reductions("final_norm", "scaled") as other, pytest.raises(sv.InvalidError) as caught:
        figures.merge(other)
    assert caught.value.code == "E_VALUE"
    for address in seen.addresses:
        rows = np.concatenate([t.reshape(-1, t.shape[-1]).double().numpy() for t in seen[address].scaled])
        figure = figures.at(address, "scaled")
        assert figure.count == len(rows)
        bound = 2 * len(rows) * 2.0**-53
        assert (np.abs(figure.sum.numpy() - rows.sum(0)) <= bound * np.abs(rows).sum(0)).all()
        squares = rows * rows
        assert (np.abs(figure.sum_of_squares.numpy() - squares.sum(0)) <= bound * squares.sum(0)).all()
        assert (figure.minimum.numpy() == rows.min(0)).all() and (figure.maximum.numpy() == rows.max(0)).all()
        assert (figure.max_abs.numpy() == np.abs(rows).max(0)).all()


def test_watching_smollm2_changes_no_bit(smollm2_gguf):
    model = sv.load(smollm2_gguf)
    ids = torch.arange(1000, 1064)
    with torch.no_grad():
        quiet = model.logits(ids)
        with model.taps("**") as seen, model.reductions("**", "input", "scaled"):
            watched = model.logits(ids)
        assert torch.equal(watched, quiet)
        with model.base():
            assert torch.equal(model.logits(ids), quiet)
    # scaled = normalized * vector, one float32 product, bit for bit.
    for address in seen.addresses:
        at = seen[address]
        assert torch.equal(at.scaled[0], at.normalized[0] * at.vector[0])


def test_a_missing_part_says_why(tiny_models):
    model = sv.load(tiny_models["llama"].file)
    with model.taps("final_norm", "input", "vector_gradient") as seen:
        with pytest.raises(sv.InvalidError, match="did not run") as caught:
            _ = seen["final_norm"].input
        assert caught.value.code == "E_STATE"
        model.logits(IDS)
    with pytest.raises(sv.InvalidError, match="requires_grad_"):
        _ = seen["final_norm"].vector_gradient
    with pytest.raises(sv.InvalidError, match="not asked for"):
        _ = seen["final_norm"].rms
    with pytest.raises(sv.AddressError, match="final_norm"):
        _ = seen["layers.0.mlp.input_norm"]
    with pytest.raises(sv.InvalidError, match="normalized"), model.taps("final_norm", "output"):
        pass
    with pytest.raises(sv.InvalidError, match="as a whole"), model.taps("final_norm@1:3"):
        pass


def test_a_capture_outlives_its_model(tiny_models):
    model = sv.load(tiny_models["llama"].file, dtype="float64")
    model.scales["final_norm"].stored.requires_grad_(True)
    with model.taps("final_norm", "input", "vector_gradient") as seen:
        loss = model.logits(IDS).sum()
        del model
        gc.collect()
        loss.backward()
    assert seen["final_norm"].vector_gradient[0].shape == (32,)
    assert not seen.watching


def test_an_exit_with_everything_alive(tiny_models):
    """Capture, override, graph and model at the end of the interpreter: it ends with status 0, in any order of names."""
    code = """
        import sys, torch, scalevec as sv
        a_model = sv.load(sys.argv[1])
        vector = torch.ones(32, requires_grad=True)
        core = a_model.transformer
        b_capture = sv._scalevec.Capture(core, "**", ["input", "vector_gradient"])
        c_override = sv._scalevec.Override(core, {"final_norm": vector})
        d_sums = sv._scalevec.Reductions(core, "**", ["scaled"], products=True)
        e_loss = a_model.logits([1, 2, 3]).sum()
        e_loss.backward(retain_graph=True)
        print("done", flush=True)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tiny_models["llama"].file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n" and not run.stderr
