"""The life of adapters beside a real vLLM: a bad one harms nobody, and vLLM may restart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import pytest

from local import models
from loraserve.catalog.gate import inspect
from tests.e2e.conftest import ANSWERS, BASE, Served, eventually, run_local
from tests.peft_settings import AS_PEFT_SAVES_IT, FIELDS_OF_VLLM, REFUSED_BY_VLLM, TAKEN_BY_VLLM


def test_the_gate_knows_every_check_that_the_images_vllm_makes(served: Served) -> None:
    """Its module is run without what it imports, which takes vLLM half a minute."""
    cases = [
        ({key: value}, taken)
        for listed, taken in ((TAKEN_BY_VLLM, True), (REFUSED_BY_VLLM, False))
        for key, values in listed.items()
        for value in values
    ]
    adapter = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | AS_PEFT_SAVES_IT
    program = f"""
import importlib.util, json, pathlib, sys
from types import ModuleType, SimpleNamespace
sys.modules["vllm.config.lora"] = SimpleNamespace(LoRAConfig=None)
sys.modules["vllm.logger"] = SimpleNamespace(init_logger=lambda _: SimpleNamespace(info_once=lambda _: None))
sys.modules["helper"] = helper = ModuleType("helper")
folder = pathlib.Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
exec((folder / "lora/peft_helper.py").read_text(), helper.__dict__)

def takes(config):
    try:
        helper.PEFTHelper.from_dict({adapter!r} | config).validate_legal(SimpleNamespace(max_lora_rank=512))
    except ValueError:
        return False
    return True

fields = list(helper.PEFTHelper.__dataclass_fields__)
print(json.dumps([fields, [config for config, taken in {cases!r} if takes(config) != taken]]))
"""
    said = served.kubectl("exec", served.pod_name, "--container", "vllm", "--", "python3", "-c", program)
    fields, otherwise = json.loads(said)
    assert set(fields) == FIELDS_OF_VLLM
    assert otherwise == []


def test_what_the_gate_accepts_is_to_vllm_what_it_is_to_peft(served: Served, peft: Path) -> None:
    """In float32 on both sides, in vLLM's image beside the stack, which serves in bfloat16."""
    kinds = [folder for folder in peft.iterdir() if folder.is_dir()]
    for folder in kinds:
        inspect(folder)
    base = models.base(served.stack.place.run_in_vllm_image)
    script = Path(__file__).with_name("answered_by_vllm.py")
    served.stack.place.run_in_vllm_image(
        ["python3", str(script), str(base), str(peft)], [script.parent, base.parent, peft]
    )
    answered = json.loads((peft / "answered.json").read_text())
    _, expected = expectations(peft)
    assert answered.keys() == {"base", *(folder.name for folder in kinds)}
    apart = {kind: max(differences(answered[kind], expected[kind])) for kind in answered}
    assert max(apart.values()) < ROUNDING, apart
    for kind in answered.keys() - {"base"}:
        assert mean_difference(expected[kind], expected["base"]) > 1000 * ROUNDING, kind


def test_bad_adapters_are_quarantined_with_a_reason_and_the_others_answer_as_peft_has_them(
    served: Served, tmp_path: Path, peft: Path
) -> None:
    before = served.declared
    good = next(entry for entry in before if entry["name"] == "faq")
    tokens, expected = expectations(peft)
    assert mean_difference(expected["base"], chances(served, BASE, tokens)) < NOISE
    kinds = [publish(served, peft / kind, kind) for kind in ("many-settings", "rslora")]
    bad = {
        "never-published": (good | {"name": "never-published", "model": "never-published"}, "does not exist"),
        "no-effect": (publish_without_effect(served, tmp_path), "base"),
    }
    uid = served.pod_uid
    for name, (entry, reason) in bad.items():
        served.stack.declare(adapters=[good, *kinds, entry], adapterSlots="4")  # as before: vLLM need not restart
        served.local("up")
        assert reason in eventually(lambda name=name: quarantined(served).get(name))
        assert served.ask("faq") == ANSWERS["faq"]
    for adapter in ("faq", "many-settings", "rslora"):
        assert mean_difference(expected[adapter], chances(served, adapter, tokens)) < NOISE
        assert mean_difference(expected[adapter], expected["base"]) > 5 * NOISE
    table = served.local("status")
    assert "quarantined" in table
    assert "no-effect" in table
    events = served.kubectl("get", "events", "--output", "jsonpath={.items[*].message} {.items[*].note}")
    assert "no-effect" in events
    metrics = httpx.get(f"{served.address('vllm-service', 9090)}/metrics", trust_env=False).text
    assert 'loraserve_adapter_state{adapter="no-effect",state="quarantined",version="v1"} 1.0' in metrics

    served.stack.declare(
        adapters=[good, good | {"name": "other-bytes", "digest": "sha256:" + "0" * 64}], adapterSlots=""
    )
    refused = run_local(served.stack.state, "up")
    assert refused.returncode != 0, "bytes that are there and others than the digest says reach no pod"
    assert "has digest sha256:" in refused.stdout + refused.stderr
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


def test_vllms_metrics_about_adapters_are_ours(served: Served) -> None:
    """Its own have one series for every ordered set of adapters that was ever in use at once."""
    assert served.answers() == ANSWERS
    text = served.run_in_agent("import httpx; print(httpx.get('http://127.0.0.1:8000/metrics').text)")
    assert text.count("vllm:lora_requests_info{") <= 1
    assert 'vllm:lora_last_used_timestamp_seconds{lora_name="faq@v1"}' in text


def test_adapters_do_not_leak_into_the_base_models_answers(served: Served) -> None:
    """With every slot in use: a batch that they share is where another's weights could be taken."""
    difference = served.run_in_agent("""
import os, threading, httpx
api = httpx.Client(base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {os.environ['AGENT_VLLM_API_KEY']}"}, timeout=60)
models = {model["id"]: model["root"] for model in api.get("/v1/models").json()["data"]}
base = next(name for name in models if "@" not in name)
for number in range(4):
    api.post("/v1/load_lora_adapter", json={"lora_name": f"probe-{number}", "lora_path": models["faq@v1"]})

def complete(model, **more):
    body = {"model": model, "prompt": "The quick brown fox", "temperature": 0, **more}
    return api.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]

def prompt_logprobs():
    tokens = complete(base, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
    return [next(iter(token.values()))["logprob"] for token in tokens if token]

def keep_busy():
    while not enough.is_set():
        complete("faq@v1", max_tokens=20)

alone, enough = prompt_logprobs(), threading.Event()
busy = [threading.Thread(target=keep_busy) for _ in range(2)]
for thread in busy:
    thread.start()
beside = [prompt_logprobs() for _ in range(20)]
enough.set()
for thread in busy:
    thread.join()
print(max(abs(one - other) for seen in beside for one, other in zip(seen, alone, strict=True)))
""")
    assert float(difference) < 0.1  # numbers are rounded to 8 bits; another adapter makes several units


NOISE = 0.04
"""Of log-probabilities in bfloat16, in the mean over the tokens of a text."""


ROUNDING = 6e-5
"""Of log-probabilities in float32."""


@pytest.fixture(scope="module")
def peft(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of every kind, as PEFT saves it, and with what PEFT makes of them."""
    folder = tmp_path_factory.mktemp("peft")
    script, run = Path(__file__).with_name("saved_by_peft.py"), served.stack.place.run_in_vllm_image
    base, trained = models.base(run), served.stack.train("faq@v1")["faq@v1"]
    run(["python3", str(script), str(base), str(folder), f"faq={trained}"], [script.parent, base.parent, folder])
    return folder


def expectations(peft: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The tokens of a text, and their log-probabilities as PEFT has them, by kind."""
    found = json.loads((peft / "expected.json").read_text())
    return found["tokens"], found["chances"]


def chances(served: Served, model: str, tokens: list[int]) -> list[float]:
    """The same of a served model, through the gateway."""
    asked = {"model": model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
    http = httpx.Client(base_url=served.address("gateway", 8080), trust_env=False, timeout=60)
    with http:
        answer = http.post("/v1/completions", json=asked, headers={"Authorization": f"Bearer {served.key}"})
    (choice,) = answer.raise_for_status().json()["choices"]
    return [next(iter(token.values()))["logprob"] for token in choice["prompt_logprobs"] if token]


def mean_difference(one: list[float], other: list[float]) -> float:
    return mean(differences(one, other))


def differences(one: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


def publish(served: Served, folder: Path, name: str) -> dict[str, Any]:
    return served.stack.publish(folder, f"{name}@v1", served.stack.pulumi.output("adapterBucket"))


def publish_without_effect(served: Served, folder: Path) -> dict[str, Any]:
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
    return publish(served, adapter, "no-effect")


def quarantined(served: Served) -> dict[str, str]:
    """Reasons by adapter."""
    state = json.loads(httpx.get(f"{served.address('vllm-service', 9090)}/v1/state", trust_env=False).text)
    return {entry["name"]: entry["reason"] for entry in state["adapters"] if entry["state"] == "quarantined"}
