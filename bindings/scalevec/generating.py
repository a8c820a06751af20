"""Continuations of a prompt: methods of Model."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalevec import _scalevec
from scalevec.errors import Error
from scalevec.text import ids_of
from scalevec.tokenizer import Message, Tokenizer

if TYPE_CHECKING:
    from scalevec.model import Model


class Continuation(str):
    """A text that a model wrote: a string with the ids behind it.

    Attributes:
        ids: Token ids, without the prompt.
        finish: "stop" (an end token), "length" (max_tokens) or "context" (the model's context is full).
    """

    ids: list[int]
    finish: str

    @classmethod
    def _of(cls, model: Model, made: _scalevec.Generated) -> Continuation:
        tokenizer = _tokenizer(model)
        self = cls(" ".join(map(str, made.ids)) if tokenizer is None else tokenizer.decode(made.ids))
        self.ids, self.finish = made.ids, made.finish
        return self


def generate(
    model: Model,
    prompt: str | Sequence[Message] | Any,
    max_tokens: int = 80,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    *,
    top_k: int = 0,
    stop: Sequence[int] | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Continuation:
    """Continues a prompt with the model as it stands.

    Args:
        prompt: Text, token ids, or the messages of a chat (mappings with role and content).
        temperature: 0 takes the most probable token each time.
        top_p: Of the most probable tokens, the fewest of this total.
        seed: The same seed gives the same text.
        chat: Put the prompt into the model's chat template, as what a user says.
        stop: Ids that end the text; by default those that the model's tokenizer names.
        on_text: Called with each piece of text as it comes.

    Returns:
        The text, a str with `.ids` and `.finish`.
    """
    made = _scalevec.generate(
        model.transformer, _prompt_ids(model, prompt, chat), max_tokens=max_tokens, temperature=temperature,
        top_p=top_p, top_k=top_k, seed=seed, stop=_stop_ids(model, stop),
        on_token=None if on_text is None else _in_pieces(model, on_text),
    )  # fmt: skip
    return Continuation._of(model, made)


def generate_both(
    model: Model, prompt: str | Sequence[Message] | Any, max_tokens: int = 80, temperature: float = 0.0,
    top_p: float = 1.0, seed: int = 0, chat: bool = False, *, top_k: int = 0, stop: Sequence[int] | None = None,
) -> tuple[Continuation, Continuation]:  # fmt: skip
    """(before, after): the same prompt and seed with the file's vectors, and with the model as it stands."""
    before, after = _scalevec.generate_both(
        model.transformer, _prompt_ids(model, prompt, chat), max_tokens=max_tokens, temperature=temperature,
        top_p=top_p, top_k=top_k, seed=seed, stop=_stop_ids(model, stop),
    )  # fmt: skip
    return Continuation._of(model, before), Continuation._of(model, after)


def _prompt_ids(model: Model, prompt: Any, chat: bool) -> list[int]:
    if chat or (isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping)):
        return model.tokenizer.encode_chat(prompt)
    return model.tokenizer.encode(prompt) if isinstance(prompt, str) else ids_of(prompt, "prompt").tolist()


def _stop_ids(model: Model, stop: Sequence[int] | None) -> list[int]:
    if stop is not None:
        return list(stop)
    tokenizer = _tokenizer(model)
    return [] if tokenizer is None else sorted(tokenizer.stop_ids)


def _tokenizer(model: Model) -> Tokenizer | None:
    """None where the model has none, or one of a kind that is not known: ids do without. A damaged one is an error."""
    try:
        return model.tokenizer
    except Error as error:
        absent = error.code == "E_IO" and not pathlib.Path(error.file or "").exists()
        if not absent and error.code != "E_CONFIG":
            raise
        return None


def _in_pieces(model: Model, on_text: Callable[[str], None]) -> Callable[[int], None]:
    ids: list[int] = []
    shown = ""

    def on_token(index: int) -> None:
        nonlocal shown
        ids.append(index)
        text = model.tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # in the middle of a character
            on_text(text[len(shown) :])
            shown = text

    return on_token
