"""The same edit on a GGUF file and on its safetensors twin, dequantised by transformers, measures the same.

A twin in float32 holds the very vectors of the GGUF file: the same edit file fits both, and the figures differ by the
rounding of two forwards whose rotary channels stand in another order. A twin whose vectors are bfloat16 rounds what the
edit makes of them: entry i by d_i, at most half a unit in the last place, |d_i| <= 2^-8 |g_i|. To first order the loss
of the edited model then moves by sum dL/dg_i d_i, and by no more than the bound sum |dL/dg_i| |d_i|.
"""

import json
import pydoc_data.topics

import numpy as np
import pytest
import scalevec as sv
import torch
from safetensors.torch import load_file, save_file

FIGURES = ("loss_base", "loss_edited", "loss_change", "kl", "kl_reverse", "tv")


@pytest.fixture(scope="module")
def twin(smollm2_peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    config = smollm2_peer.config.to_dict()
    config.pop("quantization_config", None)  # transformers would not write a model that it read from GGUF
    (folder / "config.json").write_text(json.dumps(config))
    tensors = smollm2_peer.state_dict()
    del tensors["lm_head.weight"]  # tied
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def ids(smollm2_gguf):
    text = "\n".join(pydoc_data.topics.topics.values())
    return torch.tensor(sv.load(smollm2_gguf).tokenizer.encode(text[:8000])[:1024])


def rescaled(model: sv.Model) -> sv.Edit:
    with model.edit() as block:
        block.rescale("layers.*.mlp.input_norm", 1.1)
        block.ablate("final_norm@17")
    return block.to_edit()


def measured(model: sv.Model, edit: sv.Edit, ids: torch.Tensor) -> dict[str, float]:
    change = sv.measure(model, ids, edit=edit)
    return {name: float(getattr(change, name)) for name in FIGURES}


def test_float32_twin(smollm2_gguf, twin, ids):
    gguf, safetensors = sv.load(smollm2_gguf), sv.load(twin)
    edit = rescaled(gguf)
    a, b = measured(gguf, edit, ids), measured(safetensors, edit, ids)
    assert a["loss_change"] > 0.1
    for name in FIGURES:
        # Two float32 forwards differ by 3.5e-4 in a logit (test_parity); its mean over 1,022 predictions by far less.
        assert b[name] == pytest.approx(a[name], abs=2e-5), name


def test_bfloat16_vectors(smollm2_gguf, twin, ids, tmp_path):
    gguf = sv.load(smollm2_gguf)
    tensors = load_file(twin / "model.safetensors")
    vectors = {scale.address: scale.native for scale in sv.load(twin).scales}
    assert len(vectors) == 61
    for name in vectors.values():
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((twin / "config.json").read_bytes())
    model = sv.load(tmp_path)
    edit, rounded = rescaled(gguf), rescaled(model)
    with pytest.raises(sv.Error, match="another base"):
        sv.measure(model, ids, edit=edit)

    a, b = measured(gguf, edit, ids), measured(model, rounded, ids)
    gguf.apply(edit), model.apply(rounded)
    gradient = gguf.saliency(ids).gradient
    rounding = {scale.address: model.scales[scale.address].effective - scale.effective for scale in gguf.scales}
    for scale in gguf.scales:
        assert np.all(np.abs(rounding[scale.address]) <= np.abs(scale.effective) * 2**-8), scale.address
    terms = [gradient[address] * rounding[address] for address in rounding]
    predicted, bound = sum(float(t.sum()) for t in terms), sum(float(np.abs(t).sum()) for t in terms)
    moved = b["loss_edited"] - a["loss_edited"]
    print(f"loss moved by {moved:.2e}; predicted {predicted:.2e}; bound {bound:.2e}")
    assert 2e-5 < abs(moved) <= bound
    assert moved == pytest.approx(predicted, rel=0.2)
