"""Asks every question of a file whole and streamed, all at once, with whichever of OpenAI's Python clients is installed.

ask.py QUESTIONS.json
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import openai

_OF_VLLM = {"structured_outputs"}


def main(file: str) -> None:
    questions = list(product(json.loads(Path(file).read_text()), (False, True)))
    with openai.OpenAI() as client, ThreadPoolExecutor(len(questions)) as pool:
        print(json.dumps(list(pool.map(lambda asked: answer(client, *asked), questions))))


def answer(client: openai.OpenAI, question: dict[str, Any], streamed: bool) -> dict[str, Any]:
    named = {"model": question["model"], "name": question["name"], "streamed": streamed}
    body = {key: value for key, value in question["body"].items() if key not in _OF_VLLM}
    body["extra_body"] = {key: value for key, value in question["body"].items() if key in _OF_VLLM}
    try:
        text, calls = (stream if streamed else whole)(client, body)
    except openai.OpenAIError as error:
        return {**named, "text": "", "calls": [], "error": repr(error)}
    return {**named, "text": text, "calls": calls, "error": ""}


def whole(client: openai.OpenAI, body: dict[str, Any]) -> tuple[str, list[list[str]]]:
    message = client.chat.completions.create(**body).choices[0].message
    calls = [call.function for call in message.tool_calls or [] if call.type == "function"]
    return message.content or "", [[call.name, call.arguments] for call in calls]


def stream(client: openai.OpenAI, body: dict[str, Any]) -> tuple[str, list[list[str]]]:
    text, calls = "", dict[int, list[str]]()
    for piece in client.chat.completions.create(**body, stream=True):
        for choice in piece.choices:
            text += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, ["", ""])
                call[0] += (part.function and part.function.name) or ""
                call[1] += (part.function and part.function.arguments) or ""
    return text, list(calls.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
