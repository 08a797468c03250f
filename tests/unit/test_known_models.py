"""The list of base models: it agrees with what was measured, a stack needs the name alone, and faults are told."""

from __future__ import annotations

import json

import pytest

from loraserve.operator import cli
from loraserve.planning.advice import advice
from loraserve.planning.known_models import KNOWN_MODELS, known_fault
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import CHECKOUT, adapter, stack_values

MEASURED = json.loads((CHECKOUT / "bench/gpu_memory.json").read_text())
SAME_SHAPE = {
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama-3.1-8b-awq": "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b-awq": "Qwen/Qwen3-8B-AWQ",
    "gemma-2-2b": "google/gemma-2-2b-it",
    "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "phi-4": "microsoft/phi-4",
}
"""Models of the measured rows, and those of the list that are made alike."""


@pytest.mark.parametrize(("measured", "known"), SAME_SHAPE.items())
def test_weights_and_shape_are_those_that_were_measured(measured: str, known: str) -> None:
    config, shape = MEASURED["models"][measured], KNOWN_MODELS[known].shape
    numbers = shape.model_dump(exclude={"weights_gib", "max_position_embeddings", "family", "quantisation"})
    assert numbers == {name: config[name] for name in numbers}
    assert shape.family == config["model_type"]
    plain = next(row for row in MEASURED["rows"] if row["model"] == measured and not row["slots"])
    assert shape.weights_gib * 1024 == pytest.approx(plain["measured"]["weights_mib"], rel=0.01)


def test_a_known_model_needs_its_name_alone() -> None:
    for name, known in KNOWN_MODELS.items():
        divisible = not known.shape.num_attention_heads % 8 and not known.shape.num_key_value_heads % 4
        gpus = "p5.48xlarge" if divisible else "g6e.2xlarge"
        parsed = parse(stack_values("dev", baseModel=name, maxModelLen=2048, gpuInstanceType=gpus))
        assert parsed.model_shape == known.shape


def test_layers_that_are_one_in_the_base_model_are_one_for_its_adapters() -> None:
    """Phi's queries, keys and values, and its gate and up: so PEFT trains them, and so vLLM has buffers for them."""
    fused = adapter(rank=8, targetModules=["qkv_proj", "o_proj"])
    settings = parse(stack_values("dev", baseModel="microsoft/Phi-4-mini-instruct", maxModelLen=4096, adapters=[fused]))

    assert settings.model_shape.lora_shape.modules["qkv_proj"] == (3072, 3072 + 2 * 1024)
    assert settings.envelope
    assert settings.envelope.target_modules == ("o_proj", "qkv_proj"), "the first envelope is of its own layers"
    with pytest.raises(InvalidSettings, match="target modules v_proj are not LoRA layers"):
        parse(stack_values("dev", baseModel="microsoft/phi-4", adapters=[adapter(targetModules=["v_proj"])]))


def test_a_long_context_that_costs_the_short_ones_is_pointed_out() -> None:
    def told(length: int) -> list[str]:
        values = stack_values("dev", baseModel="microsoft/Phi-4-mini-instruct", maxModelLen=length)
        return [sentence for sentence in advice(parse(values)) if "long contexts" in sentence]

    assert told(4096) == []
    (sentence,) = told(8192)
    assert "set maxModelLen to 4096" in sentence


def test_a_known_model_is_described_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["base-model", "Qwen/Qwen3-8B-AWQ", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["acceptedBaseIds"] == ["Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"]
    assert told["baseModelHasChatTemplate"]
    assert told["baseModelShape"]["maxPositionEmbeddings"] == 40_960
    assert parse(stack_values("dev", **told)).model_shape == KNOWN_MODELS["Qwen/Qwen3-8B-AWQ"].shape


def test_a_fault_of_vllm_is_told_for_the_combination_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    awq, fp8 = KNOWN_MODELS["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"], KNOWN_MODELS["Qwen/Qwen3-8B-FP8"]
    assert known_fault(fp8.shape) is None
    values = stack_values("dev", baseModel=awq.name, adapters=[adapter()], monitoringEnabled=False)
    (told,) = advice(parse(values))
    assert "vllm#42488" in told
    assert list(advice(parse(values | {"adapterSlots": "0", "adapters": []}))) == []
    assert cli.main(["base-model", awq.name]) == 0
    assert "vllm#42488" in capsys.readouterr().err
