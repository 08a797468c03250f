"""vLLM's further flags: a few are taken and planned with, the others refused with the reason, a change is announced."""

from __future__ import annotations

import pytest

from infra.inference import argument_reason
from infra.vllm_container import vllm_flags
from loraserve.planning.extra_args import read_levers
from loraserve.planning.gpu_memory import plan_memory
from loraserve.planning.settings_parser import InvalidSettings, parse
from loraserve.planning.stack_settings import Settings
from tests.stack_values import adapter, stack_values
from tests.unit.declared import declare


def settings(*args: str) -> Settings:
    return parse(stack_values("dev", vllmExtraArgs=list(args), adapters=[adapter()]))


def refusal(*args: str) -> str:
    with pytest.raises(InvalidSettings) as caught:
        settings(*args)
    (told,) = caught.value.problems
    assert told.startswith("loraserve:vllmExtraArgs: ")
    return told


def test_what_is_taken_reaches_vllm_the_gateway_and_the_memory_plan() -> None:
    args = [
        "--max-num-seqs=64",
        "--max-num-batched-tokens=4096",
        "--specialize-active-lora",
        "--no-enable-prefix-caching",
    ]
    changed = settings(*args)
    assert set(args) <= set(vllm_flags(changed))
    assert len([flag for flag in vllm_flags(changed) if flag.startswith("--max-num-seqs")]) == 1
    serving = changed.serving
    assert (serving.max_num_seqs, serving.max_num_batched_tokens, serving.specialize_active_lora) == (64, 4096, True)
    fewer, default = settings("--max-num-seqs=64"), settings()
    assert plan_memory(fewer.serving).kv_tokens > plan_memory(default.serving).kv_tokens
    assert {"--max-num-seqs=256", "--max-num-batched-tokens=2048"} <= set(vllm_flags(default))


@pytest.mark.parametrize(
    ("arg", "reason"),
    [
        ("--max-model-len=8192", "the program sets it from maxModelLen"),
        ("--max_model_len=8192", "the program sets it from maxModelLen"),
        ("--max-loras=4", "the program sets it from adapterSlots"),
        ("--tensor-parallel-size=2", "the program sets it from gpuInstanceType"),
        ("--trust-remote-code", "runs code of the model's authors"),
        ("--enable-log-requests", "writes prompts into logs"),
        ("--kv-cache-memory-bytes=1", "ends vLLM under load"),
        ("--seed=1", "what may be set here is --max-num-seqs"),
        ("--max-num-s=3", "what may be set here is"),
        ("--max-num-seqs", "a whole number from 1 to 1024, and not ''"),
        ("--max-num-seqs=0", "a whole number from 1 to 1024, and not '0'"),
        ("--max-num-seqs=9;reboot", "a whole number"),
        ("--specialize-active-lora=True", "takes no value"),
    ],
)
def test_what_is_not_taken_is_refused_with_the_reason(arg: str, reason: str) -> None:
    assert reason in refusal(arg)


def test_flags_that_contradict_are_refused() -> None:
    assert "is given twice" in refusal("--max-num-seqs=64", "--max-num-seqs=32")
    told = refusal("--max-num-seqs=512", "--max-num-batched-tokens=256")
    assert "--max-num-batched-tokens 256 is less than --max-num-seqs 512" in told


def test_a_change_is_announced_with_both_values() -> None:
    last = {"cluster": "loraserve-dev", "vllmExtraArgs": ["--max-num-seqs=64"]}
    told = declare("dev", last_outputs=last, vllmExtraArgs=["--max-num-seqs=32"]).messages
    assert "this restarts vLLM: vllmExtraArgs --max-num-seqs=64 -> --max-num-seqs=32" in told
    assert argument_reason(None, ["--max-num-seqs=64"]) is None
    assert argument_reason(["--max-num-seqs=64"], ["--max-num-seqs=64"]) is None
    assert argument_reason([], ["--max-num-seqs=64"]) == "vllmExtraArgs none -> --max-num-seqs=64"


def test_the_defaults_are_what_vllm_is_started_with_unasked() -> None:
    assert read_levers([]).flags == ["--max-num-seqs=256", "--max-num-batched-tokens=2048"]
