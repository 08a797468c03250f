"""What training takes of a GPU is a sum that can be followed, and a misfit names what fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from loraserve.planning.known_models import KNOWN_MODELS, MISTRAL_7B_AWQ
from loraserve.planning.training_memory import (
    TrainingRun,
    next_setting,
    plan_training,
    training_fits,
    training_problem,
)

ALL = tuple(MISTRAL_7B_AWQ.lora_shape.modules)
DEFAULT = TrainingRun(MISTRAL_7B_AWQ, GPU_INSTANCE_TYPES["g6.xlarge"], 16, ALL, 2, 8, 2048)


def run(**changes: Any) -> TrainingRun:
    if "instance" in changes:
        changes["instance"] = GPU_INSTANCE_TYPES[changes["instance"]]
    return replace(DEFAULT, **changes)


def test_a_7b_model_with_the_defaults_fits_an_l4_in_both_methods() -> None:
    plan = plan_training(DEFAULT)
    assert plan.weights_gib == pytest.approx(3.35 + 0.49, abs=0.01), "6.98 G weights in NF4, two tables in bf16"
    assert plan.adapter_gib == pytest.approx(41.9e6 * 16 / 2**30, rel=0.01), (
        "41.9 M weights, gradients, two moments in fp32"
    )
    assert plan.checkpoints_gib == pytest.approx(1.0)
    assert training_problem(DEFAULT) is None
    assert plan_training(run(method="lora")).weights_gib == pytest.approx(13.5, abs=0.1)
    assert training_fits(run(method="lora"))


def test_what_grows_with_rows_in_a_batch_and_what_does_not() -> None:
    one, four = plan_training(run(batch_size=1)), plan_training(run(batch_size=4))
    assert (four.checkpoints_gib, four.peak_gib) == (4 * one.checkpoints_gib, 4 * one.peak_gib)
    assert (four.weights_gib, four.adapter_gib, four.host_gib) == (one.weights_gib, one.adapter_gib, one.host_gib)
    assert plan_training(run(accumulation=64)) == plan_training(DEFAULT)


def test_a_misfit_names_the_smallest_change_and_the_instance_that_fits() -> None:
    told = training_problem(run(length=8192, batch_size=4))
    assert told
    assert "does not fit g6.xlarge" in told
    assert "batchSize 2 and accumulation 16; or gpuInstanceType g6e.xlarge" in told
    assert "gpuInstanceType g6e.xlarge" in str(
        training_problem(run(method="lora", length=16384, batch_size=1, accumulation=1))
    )


def test_layers_that_the_base_model_has_under_another_name_are_told() -> None:
    phi = KNOWN_MODELS["microsoft/Phi-4-mini-instruct"].shape
    told = training_problem(run(model=phi)) or ""
    assert "q_proj" in told
    assert "name some of qkv_proj, o_proj, gate_up_proj, down_proj" in told
    assert training_problem(run(model=phi, target_modules=tuple(phi.lora_shape.modules), length=512)) is None


def test_a_gpu_without_bfloat16_is_refused_with_one_that_has_it() -> None:
    told = str(training_problem(run(instance="g4dn.xlarge")))
    assert "bfloat16" in told
    assert "gpuInstanceType g5.xlarge" in told


def test_what_fits_nowhere_is_said_so() -> None:
    giant = MISTRAL_7B_AWQ.model_copy(update={"num_hidden_layers": 1280})
    assert "none of the known instance types fits" in str(training_problem(run(model=giant)))


def test_every_remedy_that_is_named_fits() -> None:
    for changed in (run(length=16384), run(method="lora", length=8192), run(batch_size=16)):
        told = training_problem(changed)
        assert told is None or "the smallest change that fits" in told


def test_after_an_out_of_memory_the_batch_is_halved_first() -> None:
    assert next_setting(DEFAULT) == "batchSize 1 and accumulation 16"
    assert next_setting(run(batch_size=1, method="lora")) == "method qlora"
    assert next_setting(run(batch_size=1)).startswith("gpuInstanceType g6")
