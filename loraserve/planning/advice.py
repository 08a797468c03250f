"""What a stack's settings cost that would deploy all the same: told at `preview`, refused by nobody. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraserve.planning.envelope import crowding_warning, envelope_around, widening
from loraserve.planning.gpu_memory import plan_memory, within_memory
from loraserve.planning.known_models import KNOWN_MODELS, known_fault
from loraserve.planning.stack_settings import Settings

MEASURED_GPUS = (1, 2)
"""How many GPUs of one host the memory model was measured on."""


def advice(settings: Settings) -> Iterator[str]:
    """A sentence for each."""
    if crowding := crowding_warning(settings.adapters, settings.envelope):
        yield crowding
    if waiting := settings.adapters_on_demand:
        yield (
            f"{waiting} of {len(settings.adapters)} adapter versions are loaded on demand: vLLM keeps {settings.adapters_held} in "
            f"the pod's memory, and {settings.pod_disk.adapter_volume_gib} GiB of its disk are for them. The first request for "
            "one that is not there waits for it, or is answered 503 after a minute (docs/adapters.md)"
        )
    yield from _widening(settings)
    if settings.envelope and (fault := known_fault(settings.model_shape)):
        yield f"{settings.base_model}: {fault}"
    short = known.short_context if (known := KNOWN_MODELS.get(settings.base_model)) else None
    if short and settings.max_model_len > short:
        yield (
            f"maxModelLen {settings.max_model_len:,} makes vLLM use what {settings.base_model} has for long contexts for short "
            f"ones too, which it answers a little worse then: where no request is longer, set maxModelLen to {short}"
        )
    if settings.monitoring_enabled and not (settings.alerting.reaches_somebody or settings.cluster_stack):
        yield "alerts reach nobody: name an SNS topic, Slack, e-mail or a webhook in alerting (docs/alerting.md)"
    if settings.gpu_hours_per_day and (settings.inference_replicas or not settings.scaling_enabled):
        yield (
            "gpuHoursPerDay holds back what would wake the model, and this one never sleeps: set inferenceReplicas to 0 with "
            "scalingEnabled"
        )
    if settings.gpu_instance.gpus not in MEASURED_GPUS:
        yield (
            f"{settings.gpu_instance.name} has {settings.gpu_instance.gpus} GPUs, and the memory plan was measured on one "
            "and two: it is unproven there"
        )


def _widening(settings: Settings) -> Iterator[str]:
    """The price of each adapter that alone makes rank or layers larger for all."""
    if settings.local.vllm_device == "cpu" or not settings.envelope:
        return
    now = plan_memory(settings.serving).kv_tokens
    modules = settings.model_shape.lora_shape.modules
    for name, others in sorted(widening(settings.adapters, modules).items()):
        narrower = replace(settings.serving, envelope=envelope_around(others, settings.adapter_slots, modules=modules))
        narrower = narrower if settings.adapter_slots else within_memory(narrower)
        without, slots = plan_memory(narrower), narrower.envelope.slots if narrower.envelope else 0
        yield (
            f"adapter {name} alone makes every slot wider (rank {settings.envelope.rank}, "
            f"{len(settings.envelope.target_modules)} layers): {settings.envelope.slots} slots and a KV cache of {now:,} tokens, "
            f"where without it there would be {slots} and {without.kv_tokens:,}. Train it like the others, or give it a stack"
        )
