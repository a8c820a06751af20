"""Sites, specs and values that the readers list, against transformers' modules and the gguf package."""

import dataclasses
import json
import math
import shutil
import subprocess

import numpy
import pytest

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture(scope="session")
def list_sites(program):
    tool = program("list_sites")

    def run(model):
        done = subprocess.run([tool, model], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def refusal(program):
    tool = program("list_sites")

    def run(model):
        done = subprocess.run([tool, model], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr or "it was accepted"
        return done.stderr

    return run


@dataclasses.dataclass
class Observed:
    """What hooks on a transformers module saw, in the order of the forward."""

    norms: list  # (name, module)
    readers: dict  # norm name -> names of the linear maps that read its output
    sources: dict  # norm name -> name of the linear map whose output it normalises


def observe(model) -> Observed:
    """Run one forward; who reads whose output is told by storage, and every tensor is kept so that none is reused."""
    import torch

    norms, outputs, inputs, kept = [], [], [], []
    handles = []

    def watch(name, module):
        is_norm = "RMSNorm" in type(module).__name__
        if not is_norm and not isinstance(module, torch.nn.Linear):
            return

        def hook(module, arguments, output):
            kept.extend([arguments[0], output])
            if is_norm:
                norms.append((name, module))
            inputs.append((name, is_norm, arguments[0].data_ptr()))
            outputs.append((name, is_norm, output.data_ptr()))

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        watch(name, module)
    with torch.no_grad():
        model(torch.arange(6)[None])
    for handle in handles:
        handle.remove()
    readers = {name: [] for name, _ in norms}
    sources = {name: [] for name, _ in norms}
    for norm, is_norm, pointer in outputs:
        if is_norm:
            readers[norm] += [name for name, other, at in inputs if not other and at == pointer]
    for norm, is_norm, pointer in inputs:
        if is_norm:
            sources[norm] += [name for name, other, at in outputs if not other and at == pointer]
    return Observed(norms, readers, sources)


@pytest.fixture(scope="session")
def listed(list_sites, tiny_models):
    return {name: list_sites(tiny_models[name].file) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_are_the_norm_modules_in_forward_order(name, tiny_models, listed):
    model = tiny_models[name].model
    seen = observe(model)
    sites = listed[name]["sites"]
    assert [site["native"] for site in sites] == [f"{module}.weight" for module, _ in seen.norms]
    tied = model.config.tie_word_embeddings
    for site, (module, _) in zip(sites, seen.norms, strict=True):
        readers = [f"{reader}.weight" for reader in seen.readers[module]]
        if tied:
            readers = ["model.embed_tokens.weight" if r == "lm_head.weight" else r for r in readers]
        assert [link["native"] for link in site["consumers"]] == readers, site["address"]
        assert [link["native"] for link in site["producers"]] == [f"{s}.weight" for s in seen.sources[module]]
        for link in site["consumers"] + site["producers"]:
            assert link["branch"] in link["native"] or link["branch"] == "head"


@pytest.mark.parametrize("name", FAMILIES)
def test_effective_values_are_stored_plus_offset(name, tiny_models, listed):
    import torch

    for site, (_, module) in zip(listed[name]["sites"], observe(tiny_models[name].model).norms, strict=True):
        stored = module.weight.detach().double().numpy()
        assert site["offset"] == (1.0 if name == "gemma3" else 0.0)
        numpy.testing.assert_array_equal(numpy.array(site["effective"]), stored + site["offset"])
        # The offset is a fact of the module: a constant input has rms 1, so its output is the effective vector.
        eps = getattr(module, "eps", None) or module.variance_epsilon
        assert site["eps"] == eps
        with torch.no_grad():
            probe = module(torch.ones(1, len(stored))).double().numpy()[0] * math.sqrt(1 + eps)
        # The norm's float32 arithmetic: at most three roundings of 2^-24.
        numpy.testing.assert_allclose(probe, site["effective"], rtol=4 * 2.0**-24, atol=2.0**-24)


@pytest.mark.parametrize("name", FAMILIES)
def test_shards_are_the_same_model(name, tiny_models, listed, list_sites):
    shards = list_sites(tiny_models[name].shards)
    assert shards.pop("files") > 1
    assert shards == {key: value for key, value in listed[name].items() if key != "files"}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_slot_of_its_shape(name, tiny_models, listed):
    parameters = {n: list(p.shape) for n, p in tiny_models[name].model.named_parameters()}
    assert dict(listed[name]["slots"].values()) == parameters
    assert listed[name]["warnings"] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_attend_as_the_modules_do(name, tiny_models, listed):
    model = tiny_models[name].model
    rotary = model.model.rotary_emb
    for layer, described in zip(model.model.layers, listed[name]["layers"], strict=True):
        attention = layer.self_attn
        window = model.config.sliding_window if name == "mistral" else getattr(attention, "sliding_window", None)
        assert described["window"] == (window or 0)
        assert described["scale"] == pytest.approx(attention.scaling, rel=1e-15)
        assert described["head_dim"] == attention.head_dim
        assert described["heads"] // described["kv_heads"] == attention.num_key_value_groups
        kind = f"{attention.layer_type}_" if name == "gemma3" else ""
        frequencies = getattr(rotary, f"{kind}inv_freq").double().numpy()
        # transformers computes them in float32: a power and a division.
        numpy.testing.assert_allclose(described["inverse_frequencies"], frequencies, rtol=1e-6)
        assert described["gelu"] == ("gelu" in str(type(layer.mlp.act_fn)).lower())
    scale = getattr(model.model.embed_tokens, "scalar_embed_scale", 1.0)
    assert listed[name]["embedding_scale"] == scale
    assert listed[name]["tied_head"] == model.config.tie_word_embeddings


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_the_configuration_class(name, program, tiny_models):
    table = json.loads(subprocess.run([program("list_sites"), "--families"], capture_output=True, check=True).stdout)
    config = type(tiny_models[name].model.config)()
    for key, value in table[config.model_type].items():
        if key in ("rope_theta", "rope_local_base_freq"):
            value_there = config.default_theta["global" if key == "rope_theta" else "local"]
        elif key == "sliding_window" and name.startswith("qwen"):
            value_there = type(config).sliding_window  # the instance drops it while it is switched off
        else:
            value_there = getattr(config, key)
        assert value_there == value, key


@pytest.fixture
def with_config(tiny_models, tmp_path):
    """A tiny model's weights beside a changed config.json; a change to None removes the field."""

    def make(name, **changes):
        folder = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_models[name].file, folder)
        config = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = value
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


SCALINGS = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama3 sharp": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.5,
        "original_max_position_embeddings": 40,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn betas": {
        "factor": 16.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
    },
    "yarn attention": {"factor": 2.0, "original_max_position_embeddings": 128, "attention_factor": 0.7},
    "yarn mscale": {
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
    "yarn context": {"factor": 4.0},
    "yarn narrow": {"factor": 4.0, "original_max_position_embeddings": 7},
}


@pytest.mark.parametrize("style", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("case", SCALINGS)
def test_rotary_scalings_are_those_of_transformers(case, style, with_config, list_sites, monkeypatch):
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, theta = case.split()[0], 50_000.0
    if style == "rope_parameters":
        changes = {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **SCALINGS[case]}}
    else:
        changes = {
            "rope_parameters": None,
            "rope_theta": theta,
            "rope_scaling": {"type": kind, **SCALINGS[case]},
        }
    folder = with_config("llama", **changes)
    layer = list_sites(folder)["layers"][0]

    config = transformers.AutoConfig.from_pretrained(folder)
    # Their formula in float64: they name the type, so the name is lent another meaning.
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    assert frequencies.dtype == torch.float64
    # A power, a logarithm and a dozen products: 1e-13 leaves each 30 units in the last place.
    numpy.testing.assert_allclose(layer["inverse_frequencies"], frequencies.numpy(), rtol=1e-13)
    assert layer["amplitude"] == pytest.approx(amplitude, rel=1e-15)


def test_gemma_scales_only_the_layers_without_a_window(with_config, list_sites):
    """The 4B to 27B models of Gemma 3, as their config.json is written: before transformers 5 and since."""
    import transformers

    old = {
        "rope_parameters": None,
        "layer_types": None,
        "_sliding_window_pattern": None,
        "sliding_window_pattern": 3,
        "rope_theta": 500_000.0,
        "rope_local_base_freq": 9_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 9_000.0},
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    }
    descriptions = []
    for changes in (old, new):
        folder = with_config("gemma3", **changes)
        descriptions.append(list_sites(folder)["layers"])
        rotary = transformers.AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
        for index, layer in enumerate(descriptions[-1]):
            kind = "full_attention" if index % 3 == 2 else "sliding_attention"
            frequencies = getattr(rotary, f"{kind}_inv_freq").double().numpy()
            numpy.testing.assert_allclose(layer["inverse_frequencies"], frequencies, rtol=1e-6)
            assert layer["window"] == (0 if kind == "full_attention" else 8)
    assert descriptions[0] == descriptions[1]


def test_a_sparse_gemma_config_is_filled_as_transformers_fills_it(tiny_models, tmp_path, list_sites):
    """`gemma3` with a text_config that leaves nearly everything out, as google/gemma-3-4b-it has it."""
    import transformers as tf

    text = {"model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    kept = {"vocab_size": 64, "sliding_window": 1024}  # 64 instead of 262,208, to keep it small
    torch_config = tf.Gemma3TextConfig(**text, **kept)
    tf.AutoModelForCausalLM.from_config(torch_config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {**text, **kept}}))
    described = list_sites(tmp_path)
    assert described["family"] == "gemma3"
    assert described["context"] == torch_config.max_position_embeddings
    layer = described["layers"][0]
    assert (layer["heads"], layer["kv_heads"], layer["head_dim"], layer["window"]) == (8, 4, 256, 1024)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional", "unheard"])
def test_unknown_rotary_scalings_are_refused_with_the_list(kind, with_config, refusal):
    said = refusal(with_config("llama", rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}))
    assert said.startswith("E_CONFIG") and "rope_parameters.rope_type" in said
    assert "default, linear, llama3 or yarn" in said and kind in said


def test_a_stored_head_that_the_config_ties_is_kept_with_a_warning(with_config, list_sites):
    described = list_sites(with_config("llama", tie_word_embeddings=True))
    assert not described["tied_head"]
    assert "ties head and embedding" in described["warnings"][0]


def test_a_head_that_is_missing_is_refused_unless_tied(with_config, refusal, list_sites):
    assert "lm_head.weight is missing" in refusal(with_config("qwen3", tie_word_embeddings=False))
    assert list_sites(with_config("qwen3", tie_word_embeddings=None))["tied_head"]


def test_the_inner_model_alone_is_read(tiny_models, tmp_path, list_sites):
    """Saved from LlamaModel, the names have no "model." before them and there is no head."""
    model = tiny_models["qwen3"].model
    model.model.save_pretrained(tmp_path)
    described = list_sites(tmp_path)
    assert described["sites"][0]["native"] == "layers.0.input_layernorm.weight"
    assert len(described["sites"]) == 3 * 4 + 1


def gguf_tensors(path) -> dict:
    """Tensors by name, as the gguf package reads them; it takes half a minute over a vocabulary, which is skipped."""
    import struct

    from gguf import GGUFReader, GGUFValueType

    class TensorReader(GGUFReader):
        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            element, count = struct.unpack_from("<IQ", self.data, orig_offs)
            size = 12
            if element == GGUFValueType.STRING:
                for _ in range(count):
                    size += 8 + struct.unpack_from("<Q", self.data, orig_offs + size)[0]
            else:
                size += count * numpy.dtype(self.gguf_scalar_to_np[GGUFValueType(element)]).itemsize
            return size, [], [], [GGUFValueType.ARRAY]

    return {tensor.name: tensor for tensor in TensorReader(path).tensors}


@pytest.mark.parametrize(
    ("fixture", "family", "count", "entries"),
    [("smollm2_gguf", "llama", 61, 35_136), ("gemma3_gguf", "gemma3", 109, 55_936)],
)
def test_real_gguf_files(fixture, family, count, entries, request, list_sites):
    path = request.getfixturevalue(fixture)
    described = list_sites(path)
    assert described["family"] == family
    sites = described["sites"]
    assert len(sites) == count and sum(site["width"] for site in sites) == entries
    tensors = gguf_tensors(path)
    assert {site["native"] for site in sites} == {name for name in tensors if "norm" in name}
    for site in sites:
        numpy.testing.assert_array_equal(numpy.array(site["effective"]), tensors[site["native"]].data.astype(float))
        assert site["offset"] == 0.0
    assert {name for name, _ in described["slots"].values()} == set(tensors)
    assert described["tied_head"] and described["warnings"] == []


def test_gemma_gguf_fills_what_its_file_leaves_out(gemma3_gguf, list_sites):
    described = list_sites(gemma3_gguf)
    for index, layer in enumerate(described["layers"]):
        is_global = index % 6 == 5
        assert layer["window"] == (0 if is_global else 512)
        assert layer["rope_base"] == (1_000_000.0 if is_global else 10_000.0)
        assert layer["gelu"] and not layer["interleaved"] and layer["scale"] == 1 / 16
    assert described["embedding_scale"] == math.sqrt(640)


def test_smollm2_gguf_keeps_the_pairwise_order(smollm2_gguf, list_sites):
    layer = list_sites(smollm2_gguf)["layers"][0]
    assert layer["interleaved"] and layer["window"] == 0 and layer["rope_base"] == 100_000.0
