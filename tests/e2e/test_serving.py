"""A base model and two adapters served by a real vLLM on a real node: what applications and operators rely on."""

from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from local.cluster.control_plane import PARTS
from local.processes import Process, ProcessError
from loraserve.operator.cli import main
from loraserve.planning.vllm_parsers import REASONING_PARSERS, TOOL_CALL_PARSERS
from tests.e2e.conftest import ANSWERS, BASE, Served, eventually

WHO: Any = [{"role": "user", "content": "Who are you?"}]


def test_make_up_shows_what_each_model_answers(served: Served) -> None:
    for model, answer in ANSWERS.items():
        (line,) = [line for line in served.first_up.splitlines() if line.strip().startswith(f"{model} ")]
        assert line.endswith(answer)


def test_up_goes_on_where_a_killed_one_stopped(served: Served) -> None:
    assert served.killed == -signal.SIGKILL
    assert "The local stack is up" in served.first_up


def test_answers_tell_the_models_apart_and_repeat(served: Served) -> None:
    assert served.answers() == ANSWERS
    assert served.answers() == ANSWERS


def test_make_ask_prints_one_answer(served: Served) -> None:
    assert served.local("ask", "--model", "legal", "--prompt", "Hello").strip() == "I am legal v1."


def test_a_shell_of_the_stack_is_that_of_publishers_operators_and_applications(served: Served) -> None:
    words = 'loraserve list --bucket "$BUCKET" && loraserve ask faq Hello && kubectl get nodes && pulumi stack ls'
    printed = served.local("shell", "--", "sh", "-ec", f'test -f "$STACK_FILE" && test -f "$DECLARED" && {words}')
    for told in ("llm-models", "I am faq v1.", "gpu-1", "local"):
        assert told in printed


def test_an_unknown_model_is_not_found(served: Served) -> None:
    with served.endpoint() as endpoint, pytest.raises(ProcessError, match="404"):
        endpoint.ask("nobody", "Hello")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": "exploratory"}, "body.temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, None),
        ({"n": 2048}, "n"),
        ({"cache_salt": 1}, "cache_salt"),
    ],
    ids=["a temperature of text", "an image to a text base", "2,048 answers at once", "a salt that is none"],
)
def test_a_clients_own_mistake_is_told_at_once_and_nobody_pays_for_it(
    served: Served, more: dict[str, Any], param: str | None
) -> None:
    ask = {"model": "faq", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with httpx.Client(base_url=served.address("gateway", 8080), trust_env=False, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {served.key}"
        refused = client.post("/v1/chat/completions", json=ask | more)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert refused.elapsed.total_seconds() < 3
        assert client.post("/v1/chat/completions", json=ask).headers["x-loraserve-model"] == "faq@v1"


@pytest.fixture
def application(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's official client."""
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{served.address('gateway', 8080)}/v1", api_key=served.key, http_client=http) as client,
    ):
        yield client


def test_the_doors_beside_completions_work_on_a_real_vllm(served: Served, application: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "faq", "input": "Who are you?", "temperature": 0, "max_output_tokens": 40}
    assert application.responses.create(**asked).output_text.strip() == ANSWERS["faq"]
    events = list(application.responses.create(**asked, stream=True))
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert streamed.strip() == ANSWERS["faq"]
    assert events[-1].type == "response.completed"
    patient = application.chat.completions.create(model="faq", messages=WHO, temperature=0, service_tier="flex")
    assert (patient.choices[0].message.content or "").strip() == ANSWERS["faq"]
    assert application.models.retrieve(BASE).model_dump()["max_model_len"] == 1024
    with httpx.Client(base_url=served.address("gateway", 8080), trust_env=False) as http:
        http.headers["Authorization"] = f"Bearer {served.key}"
        said = http.post("/tokenize", json={"model": "faq", "messages": WHO}).json()
        text = http.post("/detokenize", json={"model": "faq", "tokens": said["tokens"]}).json()["prompt"]
    assert "[INST] Who are you? [/INST]" in text, "the template that ships: the base model has none of its own"
    assert said["count"] == len(said["tokens"])


def told(stream: str) -> tuple[str, set[str]]:
    """Its text, and the shapes of its events without it: vLLM puts what is ready at once into one event, as it happens to be."""
    *events, done, end = stream.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    pieces = re.compile(r'("(?:text|content)":)("(?:[^"\\]|\\.)*")')
    text = "".join(json.loads(said) for event in events for _, said in pieces.findall(event))
    return text, {pieces.sub(r'\1""', event) for event in events}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_what_vllm_sends_and_its_tokens_are_counted_all_the_same(served: Served, path: str) -> None:
    key = base64.b64decode(served.kubectl("get", "secret", "vllm", "--output", "jsonpath={.data.api-key}")).decode()
    body = {"prompt": "Hello"} if path == "/v1/completions" else {"messages": WHO}
    body |= {"temperature": 0, "max_tokens": 12, "stream": True}
    streams = []
    for url, bearer, model in (
        (served.address("vllm-service", 8000), key, "faq@v1"),
        (served.address("gateway", 8080), served.key, "faq"),
    ):
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            headers = {"Authorization": f"Bearer {bearer}", "X-Request-Id": "who-asked-what"}
            answer = http.post(path, json=body | {"model": model}, headers=headers)
        streams.append(re.sub(r'"(id|created)":[^,]*,', "", answer.text))
    direct, through = streams
    assert told(through) == told(direct)
    assert '"system_fingerprint"' in through
    assert '"usage"' not in through
    line = f"request path={path} request_id=who-asked-what"
    assert line in served.kubectl("logs", served.pod_name, "--container", "vllm")
    assert "request_id=who-asked-what" in served.kubectl("logs", "--selector=app=gateway", "--tail=-1")


def test_a_batch_is_answered_in_order(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "batch.jsonl"
    rows = [
        {
            "custom_id": str(number),
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": WHO, "temperature": temperature, "max_tokens": 40},
        }
        for number, (model, temperature) in enumerate([("legal", 0), ("faq", "hot"), (BASE, 0), ("faq@v1", 0)])
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    url = f"{served.address('gateway', 8080)}/v1"
    assert main(["batch", str(file), "--url", url, "--key", served.key, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["refused"] == 1
    results = [json.loads(line)["response"] for line in file.with_name("batch.results.jsonl").read_text().splitlines()]
    assert [result["status_code"] for result in results] == [200, 400, 200, 200]
    answers = [r["body"]["choices"][0]["message"]["content"].strip() for r in results if r["status_code"] == 200]
    assert answers == [ANSWERS["legal"], ANSWERS[BASE], ANSWERS["faq"]]


def test_the_parsers_that_settings_may_name_are_those_of_the_image(served: Served) -> None:
    """Read from vLLM's source, as its import takes half a minute."""
    program = """
import ast, importlib.util, json, pathlib
folder = pathlib.Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
names = {}
for package in ("tool_parsers", "reasoning"):
    for node in ast.parse((folder / package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id.endswith("_PARSERS_TO_REGISTER"):
            names[package] = [key.value for key in node.value.keys]
print(json.dumps(names))
"""
    found = json.loads(served.kubectl("exec", served.pod_name, "--container", "vllm", "--", "python3", "-c", program))
    assert set(found["tool_parsers"]) == TOOL_CALL_PARSERS
    assert set(found["reasoning"]) == REASONING_PARSERS


def test_the_gateway_answers_nobody_without_a_key_and_loads_nothing_for_anybody(served: Served) -> None:
    with httpx.Client(base_url=served.address("gateway", 8080), trust_env=False) as anybody:
        assert anybody.post("/v1/completions", json={"model": BASE, "prompt": "Hello"}).status_code == 401
        anybody.headers["Authorization"] = f"Bearer {served.key}"
        assert anybody.post("/v1/completions", json={"model": "faq", "prompt": "Hello"}).status_code == 200
        for path in ("/v1/load_lora_adapter", "/adapters", "/metrics", "/invocations"):
            assert anybody.post(path, json={"lora_name": "mine", "lora_path": "/tmp"}).status_code in (404, 405), path


def test_from_outside_the_pod_vllm_has_no_other_routes_than_inference(served: Served) -> None:
    key = base64.b64decode(served.kubectl("get", "secret", "vllm", "--output", "jsonpath={.data.api-key}")).decode()
    with httpx.Client(base_url=served.address("vllm-service", 8000), trust_env=False, timeout=60) as anybody:
        anybody.headers["Authorization"] = f"Bearer {key}"  # even with the key, which applications inside have
        assert anybody.get("/health").status_code == 200
        body = {"model": "faq@v1", "prompt": "Hello", "max_tokens": 1}
        assert anybody.post("/v1/completions", json=body).status_code == 200
        load = {"lora_name": "mine", "lora_path": "/mnt/adapters", "name": "mine", "src": "/mnt/adapters"}
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "//adapters", "/invocations"):
            assert anybody.post(path, json=load).status_code == 404, path
        for path in ("/metrics", "/docs", "/version", "/load", "/v1/models/../metrics"):
            assert anybody.get(path).status_code == 404, path


def test_the_pod_may_read_its_two_prefixes_and_nothing_else(served: Served) -> None:
    bucket = served.stack.pulumi.output("adapterBucket")
    said = served.run_in_agent(f"""
import boto3
from botocore.exceptions import ClientError
s3 = boto3.client("s3")
key = "llm-models/faq/v1/manifest.json"
tries = {{
    "who": lambda: boto3.client("sts").get_caller_identity()["Arn"],
    "read": lambda: s3.get_object(Bucket={bucket!r}, Key=key)["ContentLength"] > 0,
    "list": lambda: s3.list_objects_v2(Bucket={bucket!r}, Prefix="llm-models/")["KeyCount"] > 0,
    "write": lambda: s3.put_object(Bucket={bucket!r}, Key="llm-models/faq/v1/mine", Body=b""),
    "delete": lambda: s3.delete_object(Bucket={bucket!r}, Key=key),
    "read elsewhere": lambda: s3.get_object(Bucket={bucket!r}, Key="secrets/key"),
    "list elsewhere": lambda: s3.list_objects_v2(Bucket={bucket!r}, Prefix="secrets/"),
    "list buckets": lambda: s3.list_buckets(),
    "read roles": lambda: boto3.client("iam").list_roles(),
}}
for name, action in tries.items():
    try:
        print(f"{{name}}: {{action()}}")
    except ClientError as error:
        print(f"{{name}}: refused {{error.response['ResponseMetadata']['HTTPStatusCode']}}")
""")
    found = dict(line.split(": ", 1) for line in said.splitlines())
    assert ":assumed-role/" in found.pop("who")
    assert {name: value for name, value in found.items() if value == "True"}.keys() == {"read", "list"}
    assert {name for name, value in found.items() if value == "refused 403"} == found.keys() - {"read", "list"}


def test_the_pod_is_placed_by_the_gpu_groups_rules(served: Served) -> None:
    pod = served.pod()
    assert pod.spec
    assert pod.spec.node_selector == {"workload": "gpu-vllm"}
    (vllm,) = pod.spec.containers
    assert vllm.resources
    assert vllm.resources.requests
    assert vllm.resources.requests["nvidia.com/gpu"] == "1"
    nodes = served.kubectl("get", "nodes", "--output", "jsonpath={.items[*].spec.taints}")
    assert '"nvidia.com/gpu"' in nodes


def test_up_again_changes_nothing(served: Served) -> None:
    before, restarts = served.pod_uid, served.restarts()
    again = served.local("up")
    assert "unchanged" in again
    assert "created" not in again
    assert served.pod_uid == before
    assert served.restarts() == restarts


def test_a_killed_pod_comes_back_with_its_adapters(served: Served) -> None:
    before, answers = served.pod_uid, served.answers()
    served.kubectl("delete", "pod", served.pod_name, "--grace-period=0", "--force")
    eventually(served.is_ready)
    assert served.answers() == answers
    assert served.pod_uid != before


def test_what_was_used_is_in_the_bucket(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by the gateways' own role, every two minutes."""
    assert served.stack.cloud
    for name, value in served.stack.cloud.environment.items():
        monkeypatch.setenv(name, value)

    def models_used() -> set[str]:
        assert main(["usage", "--bucket", served.stack.pulumi.output("adapterBucket"), "--json"]) == 0
        return {row["model"] for row in json.loads(capsys.readouterr().out) if row["completion_tokens"]}

    eventually(lambda: models_used() >= set(ANSWERS))  # and what other tests have published


def test_a_rebooted_node_brings_everything_back(served: Served) -> None:
    before, answers = served.pod_uid, served.answers()
    node = served.machine.node
    assert node
    node.stop()
    assert not node.running
    assert "Node:       not there" in served.local("status")
    served.local("up")
    eventually(lambda: served.is_ready() and served.answers() == answers)
    assert served.pod_uid == before


def test_after_a_crash_of_the_machine_up_builds_the_stack_anew(served: Served) -> None:
    control_plane, cloud, node = served.control_plane, served.stack.cloud, served.machine.node
    assert cloud
    assert node
    for state, names_of in ((node.state, ["node"]), (control_plane.state, PARTS), (cloud.state, ["aws"])):
        for name in names_of:
            process = Process.load(name, state)
            assert process
            process.signal(signal.SIGKILL)
    node.network.disconnect()
    assert "the emulated AWS has ended" in served.local("up")
    assert served.answers() == ANSWERS


def test_down_leaves_nothing(served: Served) -> None:
    """Last: it ends the stack that the others use."""
    down = served.local("down")
    assert "resources existed; left: nothing" in down
    assert "left behind: nothing" in down
    assert not served.stack.state.exists()
    assert "there is no local stack" in served.local("down")
