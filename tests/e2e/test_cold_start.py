"""From no replica to a first token and back, by KEDA's real operator: nobody's request is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import ANSWERS, Served, eventually


def test_a_request_to_a_sleeping_model_wakes_it_and_is_answered(served: Served) -> None:
    served.stack.declare(inferenceReplicas=0, gpuIdleMinutes=1)
    served.local("up")
    try:
        eventually(lambda: served.pods() == [])
        with served.endpoint() as endpoint:
            assert set(endpoint.models()) == set(ANSWERS), "sleeping adapters are listed"
            with ThreadPoolExecutor(8) as clients:
                names = [*ANSWERS] * 4
                answers = list(clients.map(lambda name: endpoint.ask(name, "Who are you?"), names))
        assert answers == [ANSWERS[name] for name in names]
    finally:
        served.stack.declare(inferenceReplicas=1, gpuIdleMinutes=10)
        served.local("up")
    eventually(lambda: served.is_ready() and served.answers() == ANSWERS)
