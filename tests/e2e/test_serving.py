"""A base model and two adapters served by a real vLLM on a real node: what applications and operators rely on."""

from __future__ import annotations

import base64
import signal
from typing import Any

import httpx
import pytest

from local.cluster.control_plane import PARTS
from local.processes import Process, ProcessError
from tests.e2e.conftest import ANSWERS, BASE, Served, eventually


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


def test_a_new_version_is_served_without_restarting_anything(served: Served) -> None:
    before, restarts = served.pod_uid, served.restarts()
    first, second = served.declared, served.publish("faq@v2")
    served.stack.declare(adapters=[entry for entry in first if entry["name"] != "faq"] + [second])
    served.local("up")
    eventually(lambda: served.answers() == ANSWERS | {"faq": "I am faq v2."})
    served.stack.declare(adapters=first)  # and back, as a rollback
    served.local("up")
    eventually(lambda: served.answers() == ANSWERS)
    assert served.pod_uid == before
    assert served.restarts() == restarts


def test_a_killed_pod_comes_back_with_its_adapters(served: Served) -> None:
    before, answers = served.pod_uid, served.answers()
    served.kubectl("delete", "pod", served.pod_name, "--grace-period=0", "--force")
    eventually(served.is_ready)
    assert served.answers() == answers
    assert served.pod_uid != before


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
