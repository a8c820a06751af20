"""Token ids against transformers and sentencepiece; chat templates against transformers."""

import argparse
import decimal
import inspect
import itertools
import json
import random
import unicodedata

import pytest
from scalevec import Checkpoint, Error, FileError, InvalidError
from scalevec.tokenizer import Tokenizer

SCRIPTS = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを 色は匂へど 散りぬるを",
    "我能吞下玻璃而不伤身体。天地玄黃，宇宙洪荒。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "გთხოვთ ახლავე გაიაროთ რეგისტრაცია",
    "Tiếng Việt: Con sói nâu nhảy qua con chó lười.",
    "Þ wynn ƿ æsc; ʃ ʒ ŋ; ﬁ ligature; e\u0301 combining; \u00a0nbsp; \u200bzero; \ufeffbom",
]
EMOJI = "😀 🙃 👩‍👩‍👧‍👦 🏳️‍🌈 1️⃣ 🇫🇷 👍🏽 ❤️‍🔥 ☂️ 🫠 ✈ ™ 𝔹 𓂀 🂡".split()  # noqa: SIM905
PROSE = inspect.cleandoc(argparse.__doc__ + decimal.__doc__).splitlines()
CODE = (inspect.getsource(argparse) + inspect.getsource(decimal)).splitlines()


def thousand_lines() -> list[str]:
    """Prose, code, digits, emoji, other scripts and mixtures of them; the same every time."""
    rng = random.Random(7)
    lines = [line for line in PROSE + rng.sample(CODE, 400) if line]
    lines += SCRIPTS + aligned_digits(rng)
    words = [word for line in SCRIPTS + PROSE for word in line.split()] + EMOJI
    while len(lines) < 700:
        lines.append(f"{rng.randrange(10 ** rng.randrange(1, 18)):,} {rng.random():.12f} 0x{rng.getrandbits(40):X}")
    while len(lines) < 1000:
        line = " ".join(rng.choices(words, k=rng.randrange(1, 12)))
        lines.append(rng.choice(["", "  ", "\t", "a", "\u3000"]) + line + rng.choice(["", "\n", "  ", "\r\n\n", "!?"]))
    return lines


def aligned_digits(rng: random.Random) -> list[str]:
    """100 lines of indented code, tables, lists and assignments in which more than one space stands before a digit."""
    rows = [[rng.randrange(10 ** rng.randrange(1, 6)) for _ in range(3)] for _ in range(18)]
    lines = [line for row in rows for line in json.dumps(row, indent=4).splitlines() if line.strip(" []")]
    lines += [f"{name} =   {a}  # was {b:7d}" for name, (a, b, _) in zip("abcdefghijklmn", rows, strict=False)]
    lines += [f"{a:8d} {b:>9.2f}\t\t{c}" for a, b, c in rows[:16]] + [
        f"Steps:\n\n{a}. Rest {b}" for a, b, _ in rows[:16]
    ]
    assert len(lines) == 100
    return lines


def strange_lines() -> list[str]:
    """Random characters of many blocks between spaces, digits and line ends."""
    rng = random.Random(11)
    blocks = [(0x20, 0x7F), (0x20, 0x250), (0x370, 0x700), (0x900, 0x1200), (0x2000, 0x2C00), (0x3000, 0xA000),
              (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]  # fmt: skip
    draw = lambda block: chr(rng.randrange(*block)) if rng.random() < 0.8 else rng.choice(" \t\n0123456789")  # noqa: E731
    return ["".join(draw(rng.choice(blocks)) for _ in range(rng.randrange(40))) for _ in range(500)]


def rebuilt_by_transformers(path):
    """transformers' own rebuilding, without the 10 to 30 s that it spends on the model's configuration."""
    mapping = pytest.importorskip("transformers.integrations.gguf")
    architecture, dictionary, config = mapping.get_gguf_tokenizer(str(path))
    return mapping.convert_gguf_tokenizer(architecture, dictionary)[0], config


def metadata_of(path) -> dict:
    return json.loads(Checkpoint(path).tokenizer_json())


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return Tokenizer.from_gguf(metadata_of(smollm2_gguf)), rebuilt_by_transformers(smollm2_gguf)[0]


@pytest.fixture(scope="module")
def gemma3(gemma3_gguf):
    return Tokenizer.from_gguf(metadata_of(gemma3_gguf)), rebuilt_by_transformers(gemma3_gguf)[0]


def assert_equal_ids(ours: Tokenizer, theirs, lines: list[str]) -> None:
    expected = [encoding.ids for encoding in theirs.encode_batch(lines, add_special_tokens=False)]
    for line, ids in zip(lines, expected, strict=True):
        assert ours.encode(line, own_rule=False) == ids, line


def cut_before_a_digit(line: str) -> bool:
    """Whether white space stands before a digit that GPT-2's cut leaves joined to the last of it.

    That shows where there is more of it to part from, or where a merge joins a space to the first byte of the digit:
    one such as ½ or ², of more bytes than one.
    """
    return any(
        unicodedata.category(c).startswith("N") and ((a.isspace() and b.isspace()) or (b == " " and not c.isascii()))
        for a, b, c in zip("." + line, line, line[1:], strict=False)
    )


def test_smollm2_ids_equal_the_models_own_tokenizer(smollm2, smollm2_gguf):
    """SmolLM2's tokenizer.json, whose rules GGUF names `smollm`: digits are cut off one by one, then GPT-2's cut."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    fields = pytest.importorskip("gguf").GGUFReader(smollm2_gguf).fields
    tokens, merges, kinds = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges", "token_type"))
    own = Backend(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    own.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    lines = thousand_lines()
    assert len(lines) == 1000 and sum(map(cut_before_a_digit, lines)) >= 100
    assert_equal_ids(smollm2[0], own, lines + strange_lines() + ["a\n\n1. b", "x =   42", "  12", "m² ½ ٣٤"])


def test_smollm2_ids_equal_transformers_but_for_digits_after_space(smollm2):
    """transformers 5 knows no rule `smollm` and keeps GPT-2's cut, which takes the last space to the digit."""
    ours, stock = smollm2
    lines = thousand_lines()
    different = [line for line in lines if ours.encode(line, own_rule=False) != stock.encode(line).ids]
    assert different == [line for line in lines if cut_before_a_digit(line)]
    assert_equal_ids(ours, stock, [line for line in lines + strange_lines() if not cut_before_a_digit(line)])
    for text, own, theirs in [
        ("x =   42", "x Ġ= ĠĠĠ 4 2", "x Ġ= ĠĠ Ġ 4 2"),
        ("a\n\n12", "a ĊĊ 1 2", "a Ċ Ċ 1 2"),
        ("a ½", "a Ġ Â½", "a ĠÂ ½"),
    ]:
        assert [ours.token(i) for i in ours.encode(text)] == own.split()
        assert [stock.id_to_token(i) for i in stock.encode(text).ids] == theirs.split()


def test_gemma3_ids_equal_transformers(gemma3):
    assert_equal_ids(*gemma3, thousand_lines() + strange_lines() + ["<start_of_turn>user\n\t\t\t<h1>  x\u2581\u2581y"])


def test_metadata_equals_the_gguf_package(smollm2_gguf):
    fields = pytest.importorskip("gguf").GGUFReader(smollm2_gguf).fields
    names = [name for name in fields if name.startswith("tokenizer.")]
    metadata = metadata_of(smollm2_gguf)
    assert set(metadata) == set(names)
    assert all(metadata[name] == fields[name].contents() for name in names)


def test_special_tokens_and_ends(smollm2, gemma3):
    ours, _ = smollm2
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.stop_ids) == (1, 2, False, {0, 2})
    assert ours.encode("<|im_start|>user")[0] == 1
    assert ours.decode([1, *ours.encode("hi")]) == "hi"
    assert ours.decode([1, *ours.encode("hi")], skip_special=False) == "<|im_start|>hi"
    ours, _ = gemma3
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.stop_ids) == (2, 1, True, {1, 106})
    assert ours.encode("") == [2]
    assert ours.encode("x", own_rule=False) == ours.encode("x")[1:]


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_decode_undoes_encode(name, request):
    ours, _ = request.getfixturevalue(name)
    for line in thousand_lines() + strange_lines():
        if "\u2581" not in line:  # SentencePiece's mark for a space
            assert ours.decode(ours.encode(line)) == line


def test_chat_equals_transformers(smollm2, tmp_path):
    from transformers import PreTrainedTokenizerFast

    ours, backend = smollm2
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    dialogue = [
        {"role": "system", "content": "Be <brief> & kind."},
        {"role": "user", "content": "Why 42?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "Oh"},
    ]
    templates = [
        ours.chat_template,
        "{{ bos_token }}{% for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "  {% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}"
        "{% set ns = namespace(n=1) %}{{ ns.n }}{{ add_generation_prompt }}",
    ]
    for template, prompt in itertools.product(templates, [True, False]):
        expected = theirs.apply_chat_template(
            dialogue, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        ours_with = Tokenizer.from_gguf({**metadata_small(), "tokenizer.chat_template": template})
        ours_with._tokens = ours._tokens
        assert ours_with.chat_text(dialogue, add_generation_prompt=prompt) == expected
    assert ours.chat_text("Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert ours.encode_chat("Hi")[:1] == [1]


def metadata_small(**changes) -> dict:
    spelled = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<|endoftext|>", *"abcdefgh", "ab"],
        "tokenizer.ggml.token_type": [3, *[1] * 9],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    return {**spelled, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "key", "code"),
    [
        ({"model": "t5"}, "model", "E_CONFIG"),
        ({"model": None}, "model", "E_CONFIG"),
        ({"pre": "martian"}, "pre", "E_CONFIG"),
        ({"tokens": [], "bos_token_id": None}, "tokens", "E_CONFIG"),
        ({"tokens": ["a", "b", "ab", "a"], "token_type": [1] * 4}, "tokens", "E_FORMAT"),
        ({"token_type": [1]}, "token_type", "E_FORMAT"),
        ({"merges": None}, "merges", "E_FORMAT"),
        ({"merges": ["a b c"]}, "merges", "E_FORMAT"),
        ({"merges": ["a z"]}, "merges", "E_FORMAT"),
        ({"bos_token_id": 10}, "bos_token_id", "E_FORMAT"),
        ({"model": "llama"}, "scores", "E_FORMAT"),
        (
            {"model": "llama", "scores": [0.0] * 10, "remove_extra_whitespaces": True},
            "precompiled_charsmap",
            "E_CONFIG",
        ),
    ],
)
def test_what_is_not_known_or_damaged_is_refused(changes, key, code):
    assert Tokenizer.from_gguf(metadata_small()).encode("abh") == [9, 8]
    with pytest.raises(InvalidError) as caught:
        Tokenizer.from_gguf(metadata_small(**changes))
    assert caught.value.code == code
    assert caught.value.key == f"tokenizer.ggml.{key}"
    assert isinstance(caught.value, ValueError)


def test_chat_refusals():
    tokenizer = Tokenizer.from_gguf(metadata_small())
    with pytest.raises(InvalidError, match="no chat template"):
        tokenizer.chat_text("hi")
    for template in (
        "{{ raise_exception('roles must alternate') }}",
        "{% for",
        "{{ messages[0].__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ):
        tokenizer.chat_template = template
        with pytest.raises(InvalidError) as caught:
            tokenizer.chat_text("hi")
        assert caught.value.code == "E_FORMAT"
    with pytest.raises(InvalidError) as caught:
        tokenizer.encode("\ud800")
    assert caught.value.code == "E_UTF8"
    with pytest.raises(IndexError):
        tokenizer.token(99)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_equals_sentencepiece(tmp_path, prefix):
    """A SentencePiece model trained here, described as the converter to GGUF describes one."""
    spm = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CODE + PROSE + SCRIPTS), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=1200, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=prefix, split_digits=True, allow_whitespace_only_pieces=True,
        user_defined_symbols=["<x>", "\t\t"], minloglevel=2,
    )  # fmt: skip
    model = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i)
        else 4 if model.id_to_piece(i) in ("<x>", "\t\t") else 1
        for i in range(len(model))
    ]  # fmt: skip
    ours = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(len(model))],
            "tokenizer.ggml.scores": [model.get_score(i) for i in range(len(model))],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.unknown_token_id": model.unk_id(),
            "tokenizer.ggml.bos_token_id": model.bos_id(),
            "tokenizer.ggml.add_space_prefix": prefix,
        }
    )
    assert ours.adds_bos
    for line in thousand_lines():
        if "\t\t" in line and prefix:
            continue  # the text is cut at such a piece before the prefix is put on: each part gets one, as in llama.cpp
        assert ours.encode(line) == [model.bos_id(), *model.encode(line)], line


def test_other_byte_level_rules_equal_transformers(smollm2_gguf):
    """The cuts of Llama 3, Qwen 2 and Tekken, on SmolLM2's vocabulary."""
    mapping = pytest.importorskip("transformers.integrations.gguf")
    metadata = metadata_of(smollm2_gguf)
    keep = 2000  # merges: the cut shows in the first ones
    for rule in ("llama-bpe", "qwen2", "tekken", "gpt-2"):
        trimmed = {**metadata, "tokenizer.ggml.pre": rule}
        trimmed["tokenizer.ggml.merges"] = trimmed["tokenizer.ggml.merges"][:keep]
        dictionary = {name: trimmed[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges", "token_type")} | {
            "tokenizer_type": "gpt2",
            "pre_tokenizer_type": rule,
        }
        theirs, _ = mapping.convert_gguf_tokenizer("llama", dictionary)
        ours = Tokenizer.from_gguf(trimmed)
        if rule in ("llama-bpe", "tekken"):  # their own tokenizer.json takes known words whole
            assert ours._backend.model.ignore_merges
            ours._backend.model.ignore_merges = False
        lines = thousand_lines()
        if rule == "qwen2":  # its own tokenizer.json composes characters first
            assert ours.encode("e\u0301") == ours.encode("é")
            lines = [line for line in lines if "\u0301" not in line]
        assert_equal_ids(ours, theirs, lines)


def test_folder_equals_transformers(smollm2, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours, backend = smollm2
    saved = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=ours.chat_template
    )
    saved.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    read, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for line in thousand_lines()[::5]:
        assert read.encode(line) == theirs.encode(line)
    assert read.stop_ids == {0, 2, 7}
    messages = [{"role": "user", "content": "Hi"}]
    assert read.chat_text(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert not read.adds_bos
    rule = json.loads((tmp_path / "tokenizer.json").read_text())
    adding = Tokenizer.from_gguf(metadata_small(add_bos_token=True))._backend
    rule["post_processor"] = json.loads(adding.to_str())["post_processor"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(rule))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "bos_token": "<|endoftext|>", "add_bos_token": False})
    )
    assert Tokenizer.from_folder(tmp_path).adds_bos
    assert Tokenizer.from_folder(tmp_path).encode("a") == AutoTokenizer.from_pretrained(tmp_path).encode("a")

    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InvalidError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "E_JSON"
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InvalidError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "E_FORMAT"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileError) as missing:
        Tokenizer.from_folder(tmp_path)
    assert isinstance(missing.value, OSError) and isinstance(missing.value, Error)
    assert missing.value.code == "E_IO" and missing.value.file.endswith("tokenizer.json")
    assert str(missing.value).startswith("E_IO: tokenizer: ")
