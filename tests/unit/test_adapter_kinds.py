"""What PEFT can save and users bring: accepted where the pinned vLLM serves it as it was trained, else refused for good
with the cause."""

import codecs
import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from infra import versions
from loraserve.catalog import adapters, gate
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.gate import CONFIG_FILE, WEIGHTS_FILE, UnsafeAdapter, inspect, notes
from tests.peft_settings import AS_PEFT_SAVES_IT, REFUSED_BY_VLLM, TAKEN_BY_VLLM
from tests.unit.adapters_and_vllm import BASE, lora_shapes, safetensors_of, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]


def each(values: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(key, value, id=f"{key}={value}") for key, listed in values.items() for value in listed]


def saved(folder: Path, **config: Any) -> Path:
    return write_adapter(folder, **AS_PEFT_SAVES_IT | config)


@pytest.mark.parametrize(("key", "value"), each(TAKEN_BY_VLLM))
def test_what_vllm_serves_as_trained_passes(tmp_path: Path, key: str, value: Any) -> None:
    inspect(saved(tmp_path, **{key: value}), BASE)


@pytest.mark.parametrize(("key", "value"), each(REFUSED_BY_VLLM))
def test_what_vllm_refuses_at_load_is_refused_for_good_with_the_cause(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsafeAdapter, match=rf"what vLLM does not serve:\n{key}") as raised:
        inspect(saved(tmp_path, **{key: value}))
    assert not raised.value.transient


@pytest.mark.parametrize("key", ["monteclora_config", "velora_config"])
def test_a_variant_that_saves_more_than_two_matrices_is_the_cause_that_is_named(tmp_path: Path, key: str) -> None:
    extra = {"base_model.model.model.layers.0.self_attn.q_proj.lora_velora_embed": [16]}
    config: dict[str, Any] = {key: {"num_groups": 4}}
    with pytest.raises(UnsafeAdapter, match=rf"what vLLM does not serve:\n{key}"):
        inspect(write_adapter(tmp_path, {**lora_shapes(), **extra}, **config))


def test_an_initialisation_that_changes_the_base_model_in_training_alone_is_noted(tmp_path: Path) -> None:
    inspect(saved(tmp_path, init_lora_weights="lora_ga"))

    [note] = notes(tmp_path)
    assert note.startswith("init_lora_weights 'lora_ga': it was trained on weights that the initialisation had changed")
    assert "path_initial_model_for_weight_conversion" in note


def test_the_lists_are_those_of_the_pinned_vllm() -> None:
    assert versions.VLLM == "0.32.0", (
        "read vllm/lora/peft_helper.py of the new version (_validate_features, validate_legal), adapt the gate and "
        "tests/peft_settings.py; tests/e2e/test_adapters.py compares both with what runs"
    )


def ranked(**ranks: int) -> dict[str, list[int]]:
    """Shapes of an adapter with another rank for each module."""
    return {name: shape for module, rank in ranks.items() for name, shape in lora_shapes(rank, (module,)).items()}


@pytest.mark.parametrize("pattern", ["q_proj", "layers.0.self_attn.q_proj", r".*\.0\..*q_proj", "(q|k)_proj"])
def test_the_rank_of_an_adapter_with_a_rank_pattern_is_its_largest(tmp_path: Path, pattern: str) -> None:
    folder = write_adapter(
        tmp_path, ranked(q_proj=16, v_proj=8), rank_pattern={pattern: 16}, alpha_pattern={pattern: 64}
    )

    assert inspect(folder, BASE).rank == 16


@pytest.mark.parametrize(
    ("shapes", "patterns", "reason"),
    [
        (ranked(q_proj=8, v_proj=8), {"q_proj": 16}, "says rank 16"),
        (ranked(q_proj=8, v_proj=16), {"q_proj": 16}, "says rank"),
        (ranked(q_proj=4, v_proj=8), {r".*q_proj": 16}, "says rank 8 or 16"),
        (
            {**lora_shapes(8, ("q_proj",)), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [16, 16]},
            {".*": 16},
            "of different ranks",
        ),
    ],
)
def test_tensors_of_another_rank_than_the_pattern_says_are_refused(
    tmp_path: Path, shapes: dict[str, list[int]], patterns: dict[str, int], reason: str
) -> None:
    with pytest.raises(UnsafeAdapter, match=reason):
        inspect(write_adapter(tmp_path, shapes, rank_pattern=patterns))


def test_a_strangers_pattern_is_never_run(tmp_path: Path) -> None:
    endless = r"(([a-z_.0-9]+)+)+!"

    inspect(write_adapter(tmp_path, rank_pattern={endless: 8}, target_modules=endless, exclude_modules=endless))


def test_a_strangers_thousands_of_patterns_and_targets_do_not_hold_up_the_agent(tmp_path: Path) -> None:
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {layer.format(n, half): [1, 1] for n in range(2000) for half in "AB"}
    patterns = {f"{'' if n % 2 else '^'}p{n}": n % 512 + 1 for n in range(40_000)}
    targets = [*map(str, range(40_000)), "q_proj"]
    folder = write_adapter(tmp_path, shapes, rank=1, rank_pattern=patterns, target_modules=targets)

    began = time.process_time()
    assert inspect(folder).rank == 512
    assert time.process_time() - began < 5


def test_of_several_patterns_the_first_that_matches_counts(tmp_path: Path) -> None:
    for first, second in (("self_attn.q_proj", "q_proj"), ("q_proj", "self_attn.q_proj")):
        inspect(write_adapter(tmp_path, ranked(q_proj=16), rank_pattern={first: 16, second: 4}))
        with pytest.raises(UnsafeAdapter, match="says rank 4"):
            inspect(write_adapter(tmp_path, ranked(q_proj=16), rank_pattern={second: 4, first: 16}))


def test_an_adapter_of_no_named_base_passes_where_ids_are_not_compared(tmp_path: Path) -> None:
    folder = saved(tmp_path, base_model_name_or_path=None)

    assert inspect(folder).base_model is None
    inspect(folder, BASE.model_copy(update={"accepted_ids": ()}))
    with pytest.raises(
        UnsafeAdapter, match="does not say what it was trained on, and this stack serves adapters of acme"
    ):
        inspect(folder, BASE)


@pytest.mark.parametrize(
    "tensors",
    [
        {"base_model.model.model.embed_tokens.lora_embedding_A": [8, 64]},
        {"base_model.model.model.embed_tokens.base_layer.weight": [64, 16]},
        {"base_model.model.lm_head.lora_A.weight": [8, 16], "base_model.model.lm_head.lora_B.weight": [64, 8]},
    ],
)
def test_a_trained_embedding_or_head_is_the_cause_that_is_named(tmp_path: Path, tensors: dict[str, list[int]]) -> None:
    with pytest.raises(UnsafeAdapter, match=r"embeddings or its head \(embed_tokens, lm_head\)"):
        inspect(write_adapter(tmp_path, {**tensors, **lora_shapes()}))


def test_a_tokenizer_or_template_beside_the_weights_is_noted(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert notes(folder) == []

    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 32000}')

    inspect(folder)
    [note] = notes(folder)
    assert note.startswith("added_tokens.json, chat_template.jinja: not published, and without effect")


def test_a_byte_order_mark_passes_and_never_reaches_vllm(bucket: Bucket, tmp_path: Path, disk: Path) -> None:
    folder = saved(tmp_path / "peft")
    plain = (folder / CONFIG_FILE).read_bytes()
    (folder / CONFIG_FILE).write_bytes(codecs.BOM_UTF8 + plain)

    fetched = adapters.fetch(bucket, adapters.publish(bucket, folder, "a", "v1"), disk)

    assert (fetched / CONFIG_FILE).read_bytes() == plain
    assert json.loads((fetched / CONFIG_FILE).read_text(encoding="utf-8"))["r"] == 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_weights_that_are_not_finite_are_not_published(
    bucket: Bucket, s3: Any, tmp_path: Path, value: float, place: int
) -> None:
    folder = not_finite(saved(tmp_path), value, place)

    with pytest.raises(UnsafeAdapter, match=r"holds a value that is not finite") as raised:
        adapters.publish(bucket, folder, "a", "v1")
    assert not raised.value.transient
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket.name)


def test_weights_that_are_not_finite_never_reach_vllm(
    bucket: Bucket, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(gate, "_check_values", lambda *_: None)
        adapter = adapters.publish(bucket, not_finite(saved(tmp_path / "peft"), math.nan, -1), "a", "v1")

    with pytest.raises(UnsafeAdapter, match="not finite"):
        adapters.fetch(bucket, adapter, disk)
    assert list(disk.iterdir()) == []


def not_finite(folder: Path, value: float, place: int) -> Path:
    """Puts `value` in the place of the first or the last weight."""
    content = bytearray(safetensors_of(lora_shapes()))
    data = 8 + int.from_bytes(content[:8], "little")
    offset = data if place == 0 else len(content) - 4
    struct.pack_into("<f", content, offset, value)
    (folder / WEIGHTS_FILE).write_bytes(content)
    return folder
