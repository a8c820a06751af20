"""Chat templates: Jinja, rendered in a sandbox as transformers renders them, because they come with the model."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.sandbox

from scalevec.errors import make_error


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; rendering ignores it."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def render(
    template: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """The text that a chat becomes. `tokens`: bos_token, eos_token, ... as text, for the template's use.

    Raises:
        InvalidError: E_FORMAT if the template is malformed or refuses the messages.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **tokens,
        )
    except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
        raise make_error(
            "E_FORMAT",
            f"chat: the model's chat template refused the messages: {error}. Pass plain text, or a prompt "
            "without chat.",
            key="chat_template",
        ) from error
