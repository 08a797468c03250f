"""What a stack's settings give, before anything is deployed: where the GPU's memory goes, how many requests fit, disk,
memory of the node, price; and what the next smaller and larger instance would give."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from loraserve.errors import LoraserveError
from loraserve.monitoring import metrics
from loraserve.operator.access.prometheus import Prometheus
from loraserve.planning import pod_resources
from loraserve.planning.advice import MEASURED_GPUS, advice
from loraserve.planning.cost import PRICES
from loraserve.planning.envelope import envelope_around
from loraserve.planning.gpu_memory import MEASURED_VLLM, Serving, fits, plan_memory, within_memory
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.stack_settings import Settings

USUAL_REQUEST_TOKENS = 1000
"""Prompt and answer of a request, for the number that fit at once."""


class NoTraffic(LoraserveError):
    """Prometheus has seen no adapter in use."""


@dataclass(frozen=True)
class Offer:
    """What one instance type gives these settings. GiB are those of each GPU; `hourly` is a list price in US dollars."""

    instance: str
    gpus: int
    gpu: str
    gpu_gib: float
    utilization: float
    weights_gib: float
    adapters_gib: float
    peak_gib: float
    graphs_gib: float
    overhead_gib: float
    kv_gib: float
    outside_gib: float
    slots: int
    kv_tokens: int
    full_requests: int
    """Requests of `maxModelLen` at once."""
    usual_requests: int
    fits: bool
    proven: bool
    """Whether the memory model was measured on so many GPUs."""
    hourly: float | None


@dataclass(frozen=True)
class Plan:
    """For people and for machines."""

    model: str
    max_model_len: int
    offer: Offer
    smaller: Offer | None
    larger: Offer | None
    adapters: int
    on_demand: int
    """Of these, what no pod holds before a request asks for it."""
    rank: int
    target_modules: tuple[str, ...]
    flags: tuple[str, ...]
    adapter_disk_gib: int
    pod_disk_gib: int
    node_disk_gib: int
    pod_memory_mib: int
    adapters_held: int | None
    """What vLLM keeps in it; None without LoRA."""
    node_memory_mib: int
    advice: tuple[str, ...]
    measured_with: str
    at_once: int | None
    """Adapters in use within a minute, of which there are slots for this many."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def adapters_at_once(url: str, namespace: str, window: str) -> int:
    """How many adapters the gateway saw in use within a minute, the 95th percentile, from Prometheus.

    Raises NoTraffic, PrometheusUnavailable.
    """
    found = Prometheus(url).now(metrics.adapters_at_once(0.95, namespace, window))
    if not found:
        raise NoTraffic(
            f"Prometheus knows no request to an adapter in {namespace} within {window}: look at the namespace, or at a longer "
            "--window"
        )
    return math.ceil(found[0].latest)


def plan(settings: Settings, region: str, at_once: int | None = None) -> Plan:
    """`region` is for prices only; `at_once` takes the place of `adapterSlots`."""
    if at_once is not None:
        settings = settings.model_copy(update={"adapter_slots": None})
        modules = settings.model_shape.lora_shape.modules
        wanted = envelope_around(settings.adapters, at_once=at_once, modules=modules)
        fitting = within_memory(replace(settings.serving, envelope=wanted)).envelope
        settings = settings.model_copy(update={"adapter_slots": fitting.slots if fitting else 0})
    envelope, node = settings.envelope, settings.gpu_instance
    smaller, larger = _neighbours(node)
    return Plan(
        model=settings.base_model,
        max_model_len=settings.max_model_len,
        offer=_offer(settings, node, region),
        smaller=_offer(settings, smaller, region) if smaller else None,
        larger=_offer(settings, larger, region) if larger else None,
        adapters=len(settings.adapters),
        rank=envelope.rank if envelope else 0,
        target_modules=envelope.target_modules if envelope else (),
        flags=(
            f"--max-model-len={settings.max_model_len}",
            *settings.memory_flags,
            *settings.levers.flags,
            *settings.lora_flags,
        ),
        on_demand=settings.adapters_on_demand,
        adapter_disk_gib=settings.pod_disk.adapter_volume_gib,
        pod_disk_gib=settings.pod_disk.pod_gib,
        node_disk_gib=int(settings.gpu_node_disk_gib * pod_resources.USABLE_DISK),
        pod_memory_mib=pod_resources.on_gpu(node).limits.memory_mib,
        adapters_held=settings.adapters_held,
        node_memory_mib=node.allocatable_memory_mib,
        advice=tuple(advice(settings)),
        measured_with=MEASURED_VLLM,
        at_once=at_once,
    )


def _offer(settings: Settings, instance: GpuInstanceType, region: str) -> Offer:
    serving = _serving_on(settings, instance)
    memory, prices = plan_memory(serving), PRICES.get(region)
    gib = {name: round(value, 2) for name, value in asdict(memory).items() if name.endswith("_gib")}
    del gib["budget_gib"]
    tokens = max(memory.kv_tokens, 0)
    return Offer(
        instance=instance.name,
        gpus=instance.gpus,
        gpu=instance.gpu.product,
        gpu_gib=round(instance.gpu.memory_mib / 1024, 2),
        utilization=serving.utilization,
        **gib,
        kv_gib=round(memory.kv_gib, 2),
        slots=serving.envelope.slots if serving.envelope else 0,
        kv_tokens=tokens,
        full_requests=tokens // serving.max_model_len,
        usual_requests=min(tokens // USUAL_REQUEST_TOKENS, serving.max_num_seqs),
        fits=fits(serving) and pod_resources.node_fit_problem(instance) is None,
        proven=instance.gpus in MEASURED_GPUS,
        hourly=prices.instances.get(instance.name) if prices else None,
    )


def _serving_on(settings: Settings, instance: GpuInstanceType) -> Serving:
    """As the stack would serve on another instance type: slots and share are computed anew."""
    modules = settings.model_shape.lora_shape.modules
    envelope = envelope_around(settings.adapters, settings.adapter_slots, modules=modules)
    serving = replace(settings.serving, instance=instance, envelope=envelope)
    return within_memory(serving) if settings.adapter_slots is None else serving


def _neighbours(node: GpuInstanceType) -> tuple[GpuInstanceType | None, GpuInstanceType | None]:
    """The next with less, and with more, GPU memory than cards of one size differ by."""
    smaller = [one for one in GPU_INSTANCE_TYPES.values() if _gpu_mib(one) < 0.9 * _gpu_mib(node)]
    larger = [one for one in GPU_INSTANCE_TYPES.values() if _gpu_mib(one) > 1.1 * _gpu_mib(node)]
    return max(smaller, key=_gpu_mib, default=None), min(larger, key=_gpu_mib, default=None)


def _gpu_mib(instance: GpuInstanceType) -> int:
    return instance.gpus * instance.gpu.memory_mib
