"""What OpenAI's official clients are asked on the local stack, and what is wrong with their answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from local.models import QUESTION

BOUND: dict[str, Any] = {"temperature": 0, "max_tokens": 400, "frequency_penalty": 2}
"""JSON may have spaces without end, which so small a model would write."""
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "set_mood", "strict": True, "parameters": MOOD}}
_NAMED = {"type": "function", "function": {"name": "set_mood"}}
_BY_ITSELF = '<tool_call>\n{"name": "set_mood", "arguments": {"mood": "good"}}\n</tool_call>'
"""As `toolCallParser: hermes` reads it; so small a model would not say it unbidden."""
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
_MORE: dict[str, dict[str, Any]] = {
    "words": {"temperature": 0},
    "a schema": {**BOUND, "response_format": _SCHEMA},
    "a named tool": {**BOUND, "tools": [_TOOL], "tool_choice": _NAMED},
    "a required tool": {**BOUND, "tools": [_TOOL], "tool_choice": "required"},
    "a tool by itself": {**BOUND, "tools": [_TOOL], "structured_outputs": {"choice": [_BY_ITSELF]}},
}
ANSWERS_PER_MODEL = 2 * len(_MORE)
"""Each question is asked whole and streamed."""


def questions(models: Iterable[str]) -> list[dict[str, Any]]:
    """What a client's program is told, as JSON."""
    messages = [{"role": "user", "content": QUESTION}]
    return [
        {"model": model, "name": name, "body": {"model": model, "messages": messages, **more}}
        for model in models
        for name, more in _MORE.items()
    ]


def problems(answers: Iterable[Mapping[str, Any]], expected: Mapping[str, str]) -> list[str]:
    """What is not as it should be; `expected` has each model's own words."""
    return [
        f"{answer['model']}, {answer['name']}, {'streamed' if answer['streamed'] else 'whole'}: {answer}"
        for answer in answers
        if answer["error"] or not _is_right(answer, expected[answer["model"]])
    ]


def _is_right(answer: Mapping[str, Any], words: str) -> bool:
    if answer["name"] == "words":
        return answer["text"].strip() == words
    if answer["name"] == "a schema":
        return _is_mood(answer["text"])
    return [name for name, _ in answer["calls"]] == ["set_mood"] and _is_mood(answer["calls"][0][1])


def _is_mood(text: str) -> bool:
    try:
        return json.loads(text) in ({"mood": "good"}, {"mood": "bad"})
    except ValueError:
        return False
