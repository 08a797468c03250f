"""`loraserve status` against a kubectl that answers from files."""

import json
import os
import sys
from pathlib import Path

import pytest

from loraserve.contract.agent_state import AdapterStatus, AgentState, Slots, State
from loraserve.operator.cli import main
from loraserve.operator.status import PodStatus, read

KUBECTL = """#!{python}
import pathlib, sys
arguments = [argument.replace("/", "_") for argument in sys.argv[1:]]
answers = pathlib.Path(__file__).parent / "answers"
command = arguments[0]
asked = f"{{command}} {{arguments[2] if '--raw' in arguments else arguments[1]}}"
answer = answers / asked
if not answer.exists():
    sys.exit(f"Error from server: {{asked}}")
print(answer.read_text())
"""


class Kubectl:
    """Its answers by command and what is asked for; an error to everything else."""

    def __init__(self, folder: Path) -> None:
        self._answers = folder / "answers"
        self._answers.mkdir()
        executable = folder / "kubectl"
        executable.write_text(KUBECTL.format(python=sys.executable))
        executable.chmod(0o755)

    def pods(self, *names: str) -> None:
        items = [{"metadata": {"name": name}} for name in names]
        self._answer("get pods", json.dumps({"items": items}))

    def state(self, pod: str, state: AgentState, *, through: str = "proxy") -> None:
        path = f"_api_v1_namespaces_ml-models_pods_{pod}:9090_proxy_v1_state"
        self._answer(f"get {path}" if through == "proxy" else f"exec {pod}", state.model_dump_json(by_alias=True))

    def _answer(self, asked: str, text: str) -> None:
        (self._answers / asked).write_text(text)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return Kubectl(tmp_path)


def state(*adapters: AdapterStatus) -> AgentState:
    return AgentState(base="mistral", ready=True, slots=Slots(total=4, used=len(adapters)), adapters=adapters)


def test_one_table_shows_every_pods_adapters(kubectl: Kubectl, capsys: pytest.CaptureFixture[str]) -> None:
    ready = AdapterStatus(name="faq", version="v2", state=State.READY, last_used=1.0)
    bad = AdapterStatus(name="legal", version="v1", state=State.QUARANTINED, reason="it is a [pickle]")
    kubectl.pods("vllm-b", "vllm-a")
    kubectl.state("vllm-a", state(ready, bad))
    kubectl.state("vllm-b", state(ready))

    assert main(["status"]) == 0

    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in shown if row]
    assert rows[0] == ["vllm-a", "2 of 4 slots", "", "takes requests", ""]
    assert rows[1][:4] == ["", "faq", "v2", "ready"]
    assert rows[1][4].endswith("d ago")
    assert rows[2] == ["", "legal", "v1", "quarantined: it is a [pickle]", "never"]
    assert rows[3][0] == "vllm-b"


def test_an_agent_the_api_server_cannot_reach_is_asked_from_inside_its_pod(kubectl: Kubectl) -> None:
    kubectl.pods("vllm-a")
    kubectl.state("vllm-a", state(), through="exec")

    assert read("ml-models") == [PodStatus("vllm-a", state())]


def test_a_pod_that_does_not_answer_hides_no_other(kubectl: Kubectl) -> None:
    kubectl.pods("vllm-a", "vllm-b")
    kubectl.state("vllm-b", state())

    silent, answering = read("ml-models")

    assert "Error from server" in (silent.problem or "")
    assert answering.state == state()


def test_a_model_at_zero_replicas_is_no_error(kubectl: Kubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.pods()

    assert main(["status"]) == 0
    assert "scaled to zero" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_one_clear_error(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("loraserve: kubectl get: Error from server")


def test_without_kubectl_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status"]) == 1
    assert "kubectl is not installed" in capsys.readouterr().err
