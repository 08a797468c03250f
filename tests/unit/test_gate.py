"""What the gate lets pass as an adapter."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from loraserve.catalog.files import UnsafeFile
from loraserve.catalog.gate import inspect
from loraserve.contract.base_model import Base, InvalidBaseModel, read_base
from tests.unit.adapters_and_vllm import BASE, HIDDEN, Shapes, lora_shapes, write_adapter


def refusal(folder: Path, base: Base | None = None) -> str:
    with pytest.raises(UnsafeFile) as raised:
        inspect(folder, base)
    return str(raised.value)


def test_an_adapter_tells_its_facts(tmp_path: Path) -> None:
    facts = inspect(write_adapter(tmp_path, rank=12))

    assert (facts.rank, facts.alpha, facts.base_model) == (12, 16.0, "mistralai/Mistral-7B-v0.1")
    assert facts.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert facts.dtypes == ("F32",)


def test_targets_may_be_named_in_full_or_by_a_pattern(tmp_path: Path) -> None:
    shapes = lora_shapes(modules=("q_proj",))

    for targets in (["self_attn.q_proj"], r".*\.q_proj"):
        assert inspect(write_adapter(tmp_path, shapes, target_modules=targets)).target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 16}, "says rank 16"),
        ({"r": 1024}, "r: Input should be less than or equal to 512"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "says rank 4"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 1024}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": -4}}, "alpha_pattern"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "does not target"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config (KaSA)"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices (trained embeddings)"),
    ],
)
def test_a_config_that_vllm_would_not_serve_as_trained_is_refused(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(write_adapter(tmp_path, **config))


def test_a_refusal_stays_short_whatever_the_files_say(tmp_path: Path) -> None:
    long = "x" * 10_000
    configs: list[dict[str, Any]] = [{"r": long}, {"target_modules": [long]}, {"base_model_name_or_path": long}]
    for config in configs:
        assert len(refusal(write_adapter(tmp_path, **config), BASE)) < 500


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("r: 8")

    assert "adapter_config.json is not a LoRA configuration" in refusal(tmp_path)


def test_a_pickled_adapter_is_refused_by_that_name(tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")

    assert "adapter_model.bin is a pickle" in refusal(tmp_path)


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix")

    assert "not a sound safetensors file" in refusal(tmp_path)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    weights = write_adapter(tmp_path) / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")

    assert "adapter_model.safetensors is a symbolic link" in refusal(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")

    assert "adapter_config.json is not a regular file" in refusal(tmp_path)


def test_a_huge_config_is_refused_unread(tmp_path: Path) -> None:
    with (write_adapter(tmp_path) / "adapter_config.json").open("wb") as file:
        file.truncate(1 << 40)

    assert "more than the" in refusal(tmp_path)


def test_an_empty_folder_names_the_missing_file(tmp_path: Path) -> None:
    assert "adapter_config.json cannot be read: No such file" in refusal(tmp_path)


def test_one_lora_matrix_without_the_other_is_refused(tmp_path: Path) -> None:
    shapes = lora_shapes()
    shapes.popitem()

    assert "only one of its two LoRA matrices" in refusal(write_adapter(tmp_path, shapes))


def test_tensors_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    shapes = {**lora_shapes(), "model.layers.0.input_layernorm.weight": [4, 4]}

    assert "model.layers.0.input_layernorm.weight" in refusal(write_adapter(tmp_path, shapes))


def moved(to: str, **width: int) -> Shapes:
    """A q_proj adapter whose tensors are called after another layer, or have another `a` or `b` width."""
    name = f"base_model.model.model.{to}"
    return {
        f"{name}.lora_A.weight": [8, width.get("a", HIDDEN)],
        f"{name}.lora_B.weight": [width.get("b", HIDDEN), 8],
    }


def test_an_adapter_that_fits_the_base_model_passes(tmp_path: Path) -> None:
    inspect(write_adapter(tmp_path), BASE)


def test_an_adapter_of_another_base_model_is_refused_with_those_accepted(tmp_path: Path) -> None:
    told = refusal(write_adapter(tmp_path, base_model_name_or_path="meta/Llama-3"), BASE)

    assert "it was trained on 'meta/Llama-3', and this stack serves adapters of acme/tiny, mistralai/" in told
    assert "acceptedBaseIds" in told


def test_where_no_ids_are_configured_shapes_alone_decide(tmp_path: Path) -> None:
    shapes_only = BASE.model_copy(update={"accepted_ids": ()})

    inspect(write_adapter(tmp_path, base_model_name_or_path="/home/me/checkpoint-300"), shapes_only)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (moved("layers.0.self_attn.q_proj", a=32), "q_proj of acme/tiny is 16 wide there"),
        (moved("layers.0.self_attn.q_proj", b=32), "q_proj of acme/tiny is 16 wide there"),
        (moved("layers.2.self_attn.q_proj"), "is of layer 2, and acme/tiny has 2, counted from 0"),
        (moved("layers.99999.self_attn.q_proj"), "is not of a layer that acme/tiny has"),
        (moved("layers.00.self_attn.q_proj"), "is not of a layer that acme/tiny has"),
        (moved("layers.-1.self_attn.q_proj"), "is not the A or B matrix"),
        (moved("layers.0.self_attn/../q_proj"), "is not the A or B matrix"),
        (moved("layers.0.mlp.gate_proj"), "train on some of q_proj, k_proj, v_proj, o_proj"),
        (moved("q_proj"), "is not of a layer that acme/tiny has"),
        (moved("layers.0.self_attn.q_proj") | moved("twin.layers.0.self_attn.q_proj"), "that another one changes"),
    ],
)
def test_tensors_that_do_not_fit_the_base_model_are_refused(tmp_path: Path, shapes: Shapes, reason: str) -> None:
    folder = write_adapter(tmp_path, shapes, target_modules=r".*")

    assert reason in refusal(folder, BASE)


CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "model_type": "mistral",
    "head_dim": None,
}


def test_the_base_model_is_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    shape = read_base(str(tmp_path / "config.json")).shape

    assert shape
    assert shape.num_hidden_layers == 32
    assert (shape.modules["k_proj"], shape.modules["down_proj"]) == ((4096, 1024), (14336, 4096))


def test_the_base_model_is_read_from_what_the_stack_says() -> None:
    assert read_base(json.dumps(BASE.model_dump(mode="json", by_alias=True, exclude_none=True))) == BASE


@pytest.mark.parametrize(
    "content", ["{}", "[]", "no json", '{"hidden_size": "wide"}', json.dumps(CONFIG | {"hidden_size": 0})]
)
def test_a_config_without_the_numbers_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidBaseModel):
        read_base(str(tmp_path / "config.json"))


def test_a_config_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidBaseModel, match=r"/no/config\.json is no config\.json"):
        read_base("/no/config.json")
