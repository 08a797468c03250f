"""From no replica to a first token and back, by KEDA's real operator: nobody's request is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.clients import questions
from tests.e2e.conftest import ANSWERS, BASE, Served, eventually

MODELS = (BASE, "faq")


def test_a_request_to_a_sleeping_model_wakes_it_and_is_answered(served: Served, tmp_path: Path) -> None:
    """OpenAI's official client asks beside them, whole and streamed, for words, JSON by a schema and tool calls."""
    served.stack.declare(inferenceReplicas=0, gpuIdleMinutes=1)
    served.local("up")
    try:
        eventually(lambda: served.pods() == [])
        with served.endpoint() as endpoint, ThreadPoolExecutor(8) as clients, application(served, tmp_path) as official:
            assert set(endpoint.models()) == set(ANSWERS), "sleeping adapters are listed"
            names = [*ANSWERS] * 4
            answers = list(clients.map(lambda name: endpoint.ask(name, "Who are you?"), names))
            said = json.loads(official.communicate()[0])
        assert answers == [ANSWERS[name] for name in names]
        assert len(said) == len(MODELS) * questions.ANSWERS_PER_MODEL
        assert questions.problems(said, ANSWERS) == []
    finally:
        served.stack.declare(inferenceReplicas=1, gpuIdleMinutes=10)
        served.local("up")
    eventually(lambda: served.is_ready() and served.answers() == ANSWERS)


@contextmanager
def application(served: Served, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program with OpenAI's client that asks all of bench.clients; `bench.clients` does so with others, old and new."""
    file = folder / "questions.json"
    file.write_text(json.dumps(questions.questions(MODELS)))
    program = Path(questions.__file__).with_name("ask.py")
    reached = {
        "OPENAI_BASE_URL": f"{served.address('gateway', 8080)}/v1",
        "OPENAI_API_KEY": served.key,
        "NO_PROXY": "*",
    }
    with subprocess.Popen(
        [sys.executable, str(program), str(file)], env=os.environ | reached, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
