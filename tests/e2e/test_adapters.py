"""The life of adapters beside a real vLLM: a bad one harms nobody, and vLLM may restart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx

from tests.e2e.conftest import ANSWERS, Served, eventually


def test_bad_adapters_are_quarantined_with_a_reason_and_the_others_keep_serving(served: Served, tmp_path: Path) -> None:
    before = served.declared
    good = next(entry for entry in before if entry["name"] == "faq")
    bad = {
        "other-bytes": (good | {"name": "other-bytes", "digest": "sha256:" + "0" * 64}, "digest"),
        "never-published": (good | {"name": "never-published", "model": "never-published"}, "does not exist"),
        "no-effect": (publish_without_effect(served, tmp_path), "base"),
    }
    uid = served.pod_uid
    for name, (entry, reason) in bad.items():
        served.stack.declare(adapters=[good, entry])
        served.local("up")
        assert reason in eventually(lambda name=name: quarantined(served).get(name))
        assert served.ask("faq") == ANSWERS["faq"]
    table = served.local("status")
    assert "quarantined" in table
    assert "no-effect" in table
    events = served.kubectl("get", "events", "--output", "jsonpath={.items[*].message} {.items[*].note}")
    assert "no-effect" in events
    metrics = httpx.get(f"{served.address('vllm-service', 9090)}/metrics", trust_env=False).text
    assert 'loraserve_adapter_state{adapter="no-effect",state="quarantined",version="v1"} 1.0' in metrics
    served.stack.declare(adapters=before)
    served.local("up")
    eventually(lambda: served.answers() == ANSWERS)
    assert served.pod_uid == uid


def test_a_restarted_vllm_gets_its_adapters_back_from_the_agent(served: Served) -> None:
    kill = "import os, signal; os.kill(1, signal.SIGTERM)"
    served.kubectl("exec", served.pod_name, "--container", "vllm", "--", "python3", "-c", kill)
    eventually(lambda: served.restarts()["vllm"] == 1)
    eventually(lambda: served.is_ready() and served.answers() == ANSWERS)
    assert served.restarts()["agent"] == 0


def publish_without_effect(served: Served, folder: Path) -> dict[str, object]:
    """An adapter that loads without an error and changes nothing: its B matrices are zero."""
    adapter = folder / "no-effect"
    shutil.copytree(served.stack.train("faq@v1")["faq@v1"], adapter)
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    for name, tensor in json.loads(content[8:data]).items():
        if ".lora_B." in name:
            begin, end = tensor["data_offsets"]
            content[data + begin : data + end] = bytes(end - begin)
    weights.write_bytes(content)
    return served.stack.publish(adapter, "no-effect@v1", served.stack.pulumi.output("adapterBucket"))


def quarantined(served: Served) -> dict[str, str]:
    """Reasons by adapter."""
    state = json.loads(httpx.get(f"{served.address('vllm-service', 9090)}/v1/state", trust_env=False).text)
    return {entry["name"]: entry["reason"] for entry in state["adapters"] if entry["state"] == "quarantined"}
