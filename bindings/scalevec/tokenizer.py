"""Text to token ids and back, as the model's own tokenizer does it, without transformers."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from scalevec import _scalevec, chat, gguf_tokenizer
from scalevec.errors import make_error

Message = Mapping[str, Any]

_LARGEST = 256 << 20
_NAMES = ("bos", "eos", "unk", "pad")
# What ends a turn; files name one end token and templates use another.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>",
    "<eos>", "</s>",
)  # fmt: skip


def _read(folder: pathlib.Path, name: str, allow_links: bool) -> bytes | None:
    return _scalevec.read_beside(folder, name, most=_LARGEST, allow_links=allow_links)


def _read_json(folder: pathlib.Path, name: str, allow_links: bool) -> dict[str, Any] | None:
    path = str(folder / name)
    text = _read(folder, name, allow_links)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise make_error("E_JSON", f"tokenizer: {path} is no JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise make_error("E_SCHEMA", f"tokenizer: {path} holds no object", file=path)
    return value


def _text_of(token: Any) -> str | None:
    """A special token in tokenizer_config.json: its text, or an object with it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        bos_id, eos_id: Ids of the tokens that begin and end a text, or None.
        stop_ids: Ids at which generation ends: the end of a text, and of a turn in a chat.
        chat_template: The model's Jinja chat template, or None.
        source: Where it comes from, for messages.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        tokens: Mapping[str, str | None],
        chat_template: str | None = None,
        stop_ids: Iterable[int] = (),
        source: str = "",
    ) -> None:
        """`tokens`: bos, eos, unk and pad as text; prefer the class methods."""
        self._backend = backend
        self._tokens = {name: text for name, text in tokens.items() if text is not None}
        self.chat_template = chat_template
        self.source = source
        self.bos_id = self._id(self._tokens.get("bos"))
        self.eos_id = self._id(self._tokens.get("eos"))
        added = backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        ends = {self._id(text) for text in special.intersection(_TURN_ENDS)} | {self.eos_id} | set(stop_ids)
        self.stop_ids = frozenset(index for index in ends if index is not None)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, allow_links: bool = False) -> Tokenizer:
        """From ``tokenizer.json``, with ``tokenizer_config.json`` and ``generation_config.json`` where present.

        Whether BOS is added is ``tokenizer.json``'s own rule, as in transformers 5: the flags ``add_bos_token`` of
        ``tokenizer_config.json`` are for tokenizers without one.

        Args:
            allow_links: Let the files be links that leave the folder, as in a hub's cache.

        Raises:
            FileError: E_IO if there is no ``tokenizer.json``, E_PATH if a file is a link that leaves the folder.
            InvalidError: E_JSON, E_FORMAT, E_LIMIT or E_SCHEMA if a file is damaged.
        """
        folder = pathlib.Path(folder)
        path = folder / "tokenizer.json"
        described = _read_json(folder, path.name, allow_links)
        if described is None:
            raise make_error(
                "E_IO",
                f"tokenizer: {folder} holds no tokenizer.json. Put the model's own there; only the library and `measure --ids` take token ids in place of text.",
                file=str(path),
            )
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(described, ensure_ascii=False))
        except Exception as error:
            raise make_error("E_FORMAT", f"tokenizer: {path}: {error}", file=str(path)) from error
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(folder, "tokenizer_config.json", allow_links) or {}
        tokens = {name: _text_of(config.get(f"{name}_token")) for name in _NAMES}
        stops = (_read_json(folder, "generation_config.json", allow_links) or {}).get("eos_token_id", [])
        return cls(
            backend,
            tokens=tokens,
            chat_template=_folder_template(folder, config, allow_links),
            stop_ids=[stops] if isinstance(stops, int) else [i for i in stops or [] if isinstance(i, int)],
            source=str(path),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], source: str = "GGUF metadata") -> Tokenizer:
        """From the metadata of a GGUF file (keys ``tokenizer.*``).

        Raises:
            InvalidError: E_CONFIG if there is no vocabulary, or one of a kind that is not known; E_FORMAT if it is damaged.
        """
        vocabulary: Sequence[str] = metadata.get("tokenizer.ggml.tokens") or ()
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot"}
        ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
        for name, index in ids.items():
            if index is not None and not 0 <= index < len(vocabulary):
                raise make_error(
                    "E_FORMAT",
                    f"tokenizer: {name} is token {index}, but the vocabulary has {len(vocabulary)}",
                    key=f"tokenizer.ggml.{names[name]}_token_id",
                )
        return cls(
            gguf_tokenizer.build(metadata),
            tokens={name: None if (index := ids[name]) is None else vocabulary[index] for name in _NAMES},
            chat_template=metadata.get("tokenizer.chat_template"),
            stop_ids=[] if ids["eot"] is None else [ids["eot"]],
            source=source,
        )

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._backend.token_to_id(text)

    def __len__(self) -> int:
        """Ids in the vocabulary, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} ids, adds_bos={self.adds_bos}, from {self.source!r})"

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own rule begins every text with BOS."""
        return self.bos_id is not None and self._backend.encode("").ids[:1] == [self.bos_id]

    def encode(self, text: str, *, own_rule: bool = True) -> list[int]:
        """Ids of a text. Special tokens written out in it count as such, as in transformers.

        Args:
            own_rule: Add BOS and EOS where the tokenizer's own rule says so; False for neither.
        """
        return self._encoding(text, own_rule).ids

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text by the tokenizer's own rule, and the character at which each begins: ascending, int64."""
        encoding = self._encoding(text, own_rule=True)
        starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding))
        # What stands for no text, as an EOS does, begins at 0.
        return np.array(encoding.ids, np.int64), np.maximum.accumulate(starts)

    def _encoding(self, text: str, own_rule: bool) -> tokenizers.Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=own_rule)
        except (UnicodeEncodeError, TypeError) as error:
            raise make_error("E_UTF8", f"tokenizer: encode takes text without lone surrogates: {error}") from error

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Special tokens are left out unless asked for."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=skip_special)

    def token(self, index: int) -> str:
        """One token as the vocabulary spells it; E_ADDR if there is none."""
        text = self._backend.id_to_token(int(index))
        if text is None:
            raise make_error("E_ADDR", f"tokenizer: no token {index}; there are {len(self)}", index=int(index))
        return text

    def chat_text(self, messages: str | Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """A chat as the model's template writes it. A string is one message of the user.

        Raises:
            InvalidError: E_CONFIG if the model has no chat template, E_FORMAT if it refuses the messages.
        """
        if self.chat_template is None:
            raise make_error(
                "E_CONFIG",
                f"chat: {self.source} has no chat template (a base model?). Use the prompt as it is, without chat.",
                key="chat_template",
            )
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        tokens = {f"{name}_token": text for name, text in self._tokens.items()}
        return chat.render(self.chat_template, messages, tokens, add_generation_prompt)

    def encode_chat(self, messages: str | Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a chat: the template writes its own BOS, so none is added."""
        text = self.chat_text(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, own_rule=False)


def _folder_template(folder: pathlib.Path, config: Mapping[str, Any], allow_links: bool) -> str | None:
    name = "chat_template.jinja"
    text = _read(folder, name, allow_links)
    if text is not None:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise make_error(
                "E_UTF8", f"tokenizer: {folder / name} is no UTF-8: {error}", file=str(folder / name)
            ) from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None
