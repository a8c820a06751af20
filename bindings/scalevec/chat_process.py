"""Renders one chat template and ends: a program of its own, run by chat.py, JSON in and JSON out."""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _render(template: str, variables: dict[str, Any]) -> str:
    import jinja2.ext
    import jinja2.sandbox

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's words for training; rendering ignores it."""

        tags = {"generation"}  # noqa: RUF012  (as the base class has it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template).render(variables)


def main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]  # where the caller finds Jinja
    seconds, size = request["limits"]
    for what, limit in (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 0):
        resource.setrlimit(what, (limit, limit))
    try:
        answer = {"text": _render(request["template"], request["variables"])}
    except Exception as error:  # whatever a template can make Python raise
        answer = {"error": str(error)[:500] or type(error).__name__}
    json.dump(answer, sys.stdout)


main()
