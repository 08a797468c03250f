"""`loraserve status` against a kubectl that answers from files."""

import base64
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loraserve.catalog import adapters, base_weights
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_state import AdapterStatus, AgentState, Slots, State
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.keys import Key, KeyRing, create_key
from loraserve.operator.access.kubectl import Kubectl
from loraserve.operator.cli import main
from loraserve.operator.stack.status import PodStatus, read
from tests.unit.adapters_and_vllm import BUCKET, safetensors_of, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]

CONTEXT = "other"
KUBECTL = """#!{python}
import http.server, pathlib, sys
answers, arguments = pathlib.Path(__file__).parent / "answers", sys.argv[1:]
if arguments[0] == "--context":
    answers, arguments = answers / arguments[1], arguments[2:]
if arguments[0] == "--namespace":
    arguments = arguments[2:]
asked = " ".join(arguments[:2]).replace("/", " ")
answer = answers / asked
if not answer.exists():
    sys.exit(f"Error from server: {{asked}}")
if arguments[0] != "port-forward":
    print(answer.read_text())
    sys.exit()

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/state" else 404)
        self.end_headers()
        self.wfile.write(answer.read_bytes())

server = http.server.HTTPServer(("127.0.0.1", 0), Agent)
print(f"Forwarding from 127.0.0.1:{{server.server_port}} -> {{arguments[2].lstrip(':')}}", flush=True)
server.serve_forever()
"""


class FakeKubectl:
    """Its answers by command and what is asked for, an agent behind each pod's port; an error to everything else."""

    def __init__(self, folder: Path) -> None:
        self._answers = folder / "answers"
        (self._answers / CONTEXT).mkdir(parents=True)
        executable = folder / "kubectl"
        executable.write_text(KUBECTL.format(python=sys.executable))
        executable.chmod(0o755)

    def pods(self, *names: str, context: str = "", log: str | None = None) -> None:
        """`log`: the end of that of each vLLM, which has ended once."""
        ended = {"name": "vllm", "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "message": log}}}
        status = {"containerStatuses": [ended]} if log else {}
        items = [{"metadata": {"name": name}, "status": status} for name in names]
        self._answer(f"{context}/get pods" if context else "get pods", json.dumps({"items": items}))

    def log(self, pod: str, text: str) -> None:
        self._answer(f"logs pod {pod}", text)

    def desired(self, document: str | None) -> None:
        """As `get --ignore-not-found` prints it."""
        found = json.dumps({"data": {"desired.json": document}}) if document else ""
        self._answer("get configmap", found)

    def keys(self, *keys: Key) -> None:
        document = base64.b64encode(KeyRing(keys=keys).to_json().encode()).decode()
        self._answer("get secret", json.dumps({"data": {"keys.json": document}}))

    def state(self, pod: str, state: AgentState) -> None:
        self._answer(f"port-forward pod {pod}", state.model_dump_json(by_alias=True))

    def _answer(self, asked: str, text: str) -> None:
        (self._answers / asked).write_text(text)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return FakeKubectl(tmp_path)


def state(*adapters: AdapterStatus) -> AgentState:
    return AgentState(base="mistral", ready=True, slots=Slots(total=4, used=len(adapters)), adapters=adapters)


def test_one_table_shows_every_pods_adapters(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    ready = AdapterStatus(name="faq", version="v2", state=State.READY, last_used=1.0)
    bad = AdapterStatus(name="legal", version="v1", state=State.QUARANTINED, reason="it is a [pickle]")
    kubectl.pods("vllm-b", "vllm-a")
    kubectl.state("vllm-a", state(ready, bad))
    aside = AdapterStatus(name="rare", version="v1", state=State.ON_DEMAND)
    kubectl.state("vllm-b", state(ready, aside))

    assert main(["status"]) == 0

    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in shown if row]
    assert rows[0] == ["vllm-a", "2 of 4 slots", "", "takes requests", ""]
    assert rows[1][:4] == ["", "faq", "v2", "ready"]
    assert rows[1][4].endswith("d ago")
    assert rows[2] == ["", "legal", "v1", "quarantined: it is a [pickle]", "never"]
    assert rows[3][:2] == ["vllm-b", "2 of 4 slots, 1 on demand"]
    assert rows[5] == ["", "rare", "v1", "on-demand", "never"]


def test_an_agent_is_asked_through_a_port_forward_which_no_network_policy_stops(kubectl: FakeKubectl) -> None:
    kubectl.pods("vllm-a")
    kubectl.state("vllm-a", state())

    assert read(Kubectl(), "ml-models").pods == [PodStatus("vllm-a", state())]


def test_a_pod_that_does_not_answer_hides_no_other(kubectl: FakeKubectl) -> None:
    kubectl.pods("vllm-a", "vllm-b")
    kubectl.state("vllm-b", state())

    silent, answering = read(Kubectl(), "ml-models").pods

    assert "Error from server" in (silent.problem or "")
    assert answering.state == state()


def test_a_machine_reads_the_same_as_json(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.pods("vllm-a", "vllm-b")
    kubectl.state("vllm-a", state(AdapterStatus(name="faq", version="v2", state=State.READY)))

    assert main(["status", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    answering, silent = told["pods"]
    assert (answering["state"]["adapters"][0]["name"], answering["problem"]) == ("faq", None)
    assert silent["state"] is None
    assert "Error from server" in silent["problem"]
    assert told["declared"] is None


def test_a_context_of_the_kubeconfig_is_the_cluster_that_is_asked(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.pods("vllm-a")
    kubectl.pods("vllm-z", context=CONTEXT)

    assert main(["status", "--context", CONTEXT]) == 0
    assert "vllm-z" in capsys.readouterr().out


def test_a_sleeping_model_is_told_by_what_is_declared_and_whether_its_bytes_are_there(
    kubectl: FakeKubectl, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = adapters.publish(bucket, write_adapter(tmp_path / "peft"), "faq", "v1")
    other = there.model_copy(update={"name": "other", "digest": "sha256:" + "0" * 64})
    absent = there.model_copy(update={"name": "absent", "model": "absent"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    (tmp_path / "base/model.safetensors").write_bytes(safetensors_of({"w": [4, 4]}))
    base = Base(name="acme/tiny", mirror=base_weights.publish(bucket, tmp_path / "base", "acme/tiny", "w1"))
    kubectl.pods()
    kubectl.desired(DesiredState(base=base, bucket=BUCKET, adapters=(there, other, absent)).to_json())

    assert main(["status"]) == 0
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if "│" in line]
    assert "scaled to zero" in told
    assert ["acme/tiny", "w1", "as published"] in rows
    assert ["faq", "v1", "as published"] in rows

    assert main(["status", "--json"]) == 0
    declared = {each["name"]: each for each in json.loads(capsys.readouterr().out)["declared"]}
    published = {name: each["published"] for name, each in declared.items()}
    assert published == {"acme/tiny": True, "faq": True, "other": False, "absent": False}
    assert "does not exist" in declared["absent"]["problem"]
    assert "the stack config pins" in declared["other"]["problem"]


def test_keys_that_end_soon_are_warned_of(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.pods()
    kubectl.desired(None)
    now = datetime.now(UTC)
    kubectl.keys(
        *(
            create_key(tenant, ("*",), None, expires_at=(now + timedelta(days=days)).isoformat())[1]
            for tenant, days in {"gone": -1, "soon": 10, "later": 20}.items()
        ),
        create_key("never", ("*",), None)[1],
    )
    assert main(["status"]) == 0
    told = capsys.readouterr().err
    assert "of gone expired on" in told
    assert "of soon expires on" in told
    assert "`loraserve key soon`" in told
    assert "later" not in told
    assert "never" not in told


def test_a_namespace_without_a_stack_is_no_sleeping_model(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.pods()
    kubectl.desired(None)

    assert main(["status"]) == 0
    assert "Nothing of loraserve is deployed in namespace ml-models" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_one_clear_error(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("loraserve: kubectl get: Error from server")


def test_without_a_kubeconfig_the_attempts_are_not_listed_and_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = 'E1128 14:26:16.320895 15969 memcache.go:265] "Unhandled Error" err="connect: connection refused"\n'
    last = "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    executable = tmp_path / "kubectl"
    executable.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{attempt * 5}{last}\nEND\nexit 1\n")
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert main(["status"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"loraserve: kubectl get: {last} No cluster is chosen")


def test_without_kubectl_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status"]) == 1
    assert "kubectl is not installed" in capsys.readouterr().err


def test_a_share_that_was_lowered_is_told_in_vllms_words(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    told = (
        "cuda:0 has 126.8 of 139.8 GiB free, less than the share 0.95 that was planned: something else uses the card."
    )
    kubectl.pods("vllm-a")
    kubectl.state("vllm-a", state())
    kubectl.log(
        "vllm-a", f"INFO 12:00 starting\n(EngineCore pid=7) WARNING 12:01 [loraserve_gpu_share.py:57] {told}\nINFO on"
    )

    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pods"][0]["lowered"] == told
    assert main(["status"]) == 0
    assert "less than the share" in capsys.readouterr().out


def test_why_a_vllm_ended_is_told_in_its_own_words(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = "ValueError: Free memory on device cuda:0 (20.1/22.0 GiB) on startup is less than desired GPU memory utilization"
    kubectl.pods("vllm-a", log=f"INFO 12:00 starting\n{refusal}\n[rank0] exiting\n")
    assert main(["status", "--json"]) == 0
    (pod,) = json.loads(capsys.readouterr().out)["pods"]
    assert pod["ended"] == refusal
    kubectl.pods("vllm-a")
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pods"][0]["ended"] is None
