"""Chat templates: Jinja programs that come with a model, so nobody vouches for them.

They are rendered in Jinja's sandbox, as in transformers. That bounds neither time nor memory, so it stands in a process
of its own, which may use little of either and write no file.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from scalevec.errors import make_error

SECONDS = 5  # of processor time; a template needs a thousandth
BYTES = 1 << 30  # of address space, of which the interpreter takes a few per cent


def render(
    template: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """The text that a chat becomes. `tokens`: bos_token, eos_token, ... as text, for the template's use.

    Raises:
        InvalidError: E_FORMAT if the template is malformed, refuses the messages, or needs more than a template may.
    """
    try:
        request = json.dumps(
            {
                "path": sys.path,
                "limits": [SECONDS, BYTES],
                "template": template,
                "variables": {
                    "messages": [dict(message) for message in messages],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **tokens,
                },
            }
        )
        program = pathlib.Path(__file__).with_name("chat_process.py")
        done = subprocess.run(
            [sys.executable, "-I", str(program)], input=request, capture_output=True, text=True, timeout=12 * SECONDS
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {"error": "it takes too long, or too much memory"}
    except subprocess.TimeoutExpired:
        answer = {"error": "it takes too long"}
    except (TypeError, ValueError) as error:
        answer = {"error": f"they are no messages: {error}"}
    if "error" in answer:
        said = "".join(c if c.isprintable() else "\ufffd" for c in answer["error"])  # also the template's own words
        raise make_error(
            "E_FORMAT",
            f"chat: the model's chat template refused the messages: {said}. Pass plain text, or a prompt without chat.",
            key="chat_template",
        )
    return answer["text"]
