import json
from typing import Any

import pytest

from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState, Envelope, InvalidDesiredState

ENTRY: dict[str, Any] = {
    "name": "aws-rag-qa",
    "model": "mistral-7b-aws-rag-qa",
    "version": "v1",
    "digest": "sha256:" + "0" * 64,
    "rank": 8,
    "targetModules": ["q_proj", "k_proj"],
    "sizeBytes": 27_000_000,
}


def document(*entries: dict[str, Any], **overrides: Any) -> str:
    content = {"schemaVersion": 1, "base": {"name": "mistral"}, "bucket": "adapters", "adapters": entries, **overrides}
    return json.dumps(content)


def problem_of(text: str) -> str:
    with pytest.raises(InvalidDesiredState) as raised:
        DesiredState.parse(text)
    return str(raised.value)


def test_what_is_written_is_what_is_read() -> None:
    state = DesiredState(base=Base(name="mistral"), bucket="adapters", adapters=(Adapter.model_validate(ENTRY),))

    assert DesiredState.parse(state.to_json()) == state
    assert json.loads(state.to_json())["adapters"][0]["targetModules"] == ["k_proj", "q_proj"]


def test_the_order_of_adapters_and_modules_does_not_change_the_text() -> None:
    other = {**ENTRY, "name": "other"}
    shuffled = {**ENTRY, "targetModules": ["k_proj", "q_proj", "q_proj"]}

    assert (
        DesiredState.parse(document(ENTRY, other)).to_json() == DesiredState.parse(document(other, shuffled)).to_json()
    )


def test_no_adapters_at_all_is_valid() -> None:
    assert DesiredState.parse(document()).adapters == ()


def test_the_served_name_carries_the_version() -> None:
    assert Adapter.model_validate(ENTRY).served_name == "aws-rag-qa@v1"


@pytest.mark.parametrize("rank", [1, 12, 512])
def test_any_rank_up_to_the_largest_of_vllm_is_allowed(rank: int) -> None:
    assert DesiredState.parse(document({**ENTRY, "rank": rank})).adapters[0].rank == rank


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", 513),
        ("rank", "8"),
        ("rank", True),
        ("name", "Aws_Rag"),
        ("name", "a" * 64),
        ("name", "a@v1"),
        ("model", "../secrets"),
        ("model", "a/b"),
        ("version", ".."),
        ("version", ""),
        ("digest", "sha256:abc"),
        ("targetModules", []),
        ("targetModules", ["self_attn.q_proj"]),
        ("sizeBytes", 0),
        ("canaryPercent", 0),
        ("canaryPercent", 100),
        ("prewarm", 1),
        ("fallback", "other"),
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(key: str, value: object) -> None:
    assert problem_of(document(ENTRY, {**ENTRY, "name": "second", key: value})).startswith(f"adapters[1].{key}")


def test_a_misspelt_key_is_refused() -> None:
    assert "adapters[0].ranks: is not a known key" in problem_of(document({**ENTRY, "ranks": 8}))


def test_snake_case_is_no_second_spelling() -> None:
    entry = {"target_modules" if key == "targetModules" else key: value for key, value in ENTRY.items()}

    assert "adapters[0].targetModules: is missing" in problem_of(document(entry))


def test_two_adapters_of_one_name_are_refused() -> None:
    assert "2 adapters are named 'aws-rag-qa'" in problem_of(document(ENTRY, {**ENTRY, "version": "v2"}))


def test_a_canary_stands_beside_its_stable_version() -> None:
    canary = {**ENTRY, "version": "v2", "canaryPercent": 10}

    assert [adapter.version for adapter in DesiredState.parse(document(canary, ENTRY)).adapters] == ["v1", "v2"]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"canaryPercent": 10}], "is a canary of nothing"),
        ([{}, {"canaryPercent": 10}], "is its own canary"),
        ([{"version": "v2", "canaryPercent": 10}, {"canaryPercent": 10}], "2 adapters are named"),
        ([{}, {"version": "v2"}, {"version": "v3", "canaryPercent": 10}], "3 adapters are named"),
    ],
)
def test_a_canary_that_does_not_make_sense_is_refused(entries: list[dict[str, Any]], problem: str) -> None:
    assert problem in problem_of(document(*({**ENTRY, **entry} for entry in entries)))


def test_how_a_version_is_used_is_no_part_of_what_is_loaded() -> None:
    plain = Adapter.model_validate(ENTRY)
    used = Adapter.model_validate({**ENTRY, "canaryPercent": 10, "prewarm": True, "fallback": "base"})

    assert used.model_fields_set == set(Adapter.model_fields), "say of the new field on which side it is"
    assert used.version_pin() == plain
    assert Adapter.model_validate({**ENTRY, "version": "v2"}).version_pin() != plain


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"rank": 16}, "rank 16 is larger than the 8"),
        ({"targetModules": ["q_proj", "up_proj"]}, "without LoRA on up_proj"),
    ],
)
def test_what_does_not_fit_the_envelope_is_told(change: dict[str, Any], problem: str | None) -> None:
    envelope = Envelope(slots=4, rank=8, target_modules=("q_proj", "k_proj"))
    misfit = envelope.misfit(Adapter.model_validate({**ENTRY, **change}))

    assert misfit == problem if problem is None else problem in (misfit or "")


def test_an_adapter_cannot_take_the_base_models_name() -> None:
    assert "has the base model's name" in problem_of(document({**ENTRY, "name": "mistral"}))


def test_a_newer_schema_is_not_guessed_at() -> None:
    assert "schemaVersion" in problem_of(document(schemaVersion=2))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"'])
def test_what_is_no_document_is_refused(text: str) -> None:
    assert problem_of(text).startswith("document: ")
