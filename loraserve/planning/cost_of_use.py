"""What a stack costs that is used: starts from zero, tokens, a month, and the same without sleep or sharing. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from loraserve.errors import LoraserveError
from loraserve.planning.cold_start import BUDGET, FROM_ZERO
from loraserve.planning.cost import HOURS, PRICES, Prices, idle_cost
from loraserve.planning.stack_settings import Settings

DAYS = HOURS / 24
VLLM_IMAGE_GB = 10
"""Compressed. Modelled: published ones have 8 to 12; a registry was not asked."""
_GB_PER_GIB = 1.073741824


class PriceUnknown(LoraserveError):
    """There is no list price for this."""


@dataclass(frozen=True)
class Use:
    """What is asked of the stack. `hours_per_day`: with requests, of one replica."""

    hours_per_day: float
    starts_per_day: float
    tenants: int
    tokens_per_second: float | None = None
    """Of one replica at its operating point, written and read as the measurement counts them."""


@dataclass(frozen=True)
class Start:
    """Of one start from zero and its end, in US dollars."""

    until_first_token_low: float
    until_first_token_high: float
    """The node runs, and answers nobody yet: the budget of docs/cold-start.md."""
    idle_at_its_end: float
    """`gpuIdleMinutes`."""
    transfer: float
    """Through NAT: vLLM's image, and base weights that are not mirrored."""
    transfer_gb: float

    @property
    def low(self) -> float:
        return self.until_first_token_low + self.idle_at_its_end + self.transfer

    @property
    def high(self) -> float:
        return self.until_first_token_high + self.idle_at_its_end + self.transfer


@dataclass(frozen=True)
class Estimate:
    """US dollars, at list prices; a month has 730 hours."""

    region: str
    instance: str
    idle_month: float
    gpu_hour: float
    start: Start
    million_tokens: float | None
    """Of a node that is busy; None where no throughput is given."""
    month_low: float
    month_high: float
    always_on_month: float
    """The same node, which never sleeps."""
    gpu_per_tenant_month: float
    """A node for each tenant, none of which sleeps."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def estimate(settings: Settings, region: str, use: Use) -> Estimate:
    """Raises PriceUnknown."""
    prices, idle = PRICES.get(region), idle_cost(settings, region, _zones(settings))
    gpu = prices.instances.get(settings.gpu_instance_type) if prices else None
    if not prices or not idle or gpu is None:
        raise PriceUnknown(
            f"no list price is known here for {settings.gpu_instance_type} and {settings.system_instance_type} in {region}: add it "
            "to PRICES in loraserve/planning/cost.py"
        )
    floor, start = sum(idle.values()), start_cost(settings, prices, gpu)
    busy, starts = DAYS * use.hours_per_day * gpu, DAYS * use.starts_per_day
    return Estimate(
        region,
        settings.gpu_instance_type,
        floor,
        gpu,
        start,
        gpu / (use.tokens_per_second * 3600) * 1e6 if use.tokens_per_second else None,
        month_low=floor + busy + starts * start.low,
        month_high=floor + busy + starts * start.high,
        always_on_month=floor + HOURS * gpu,
        gpu_per_tenant_month=floor + use.tenants * HOURS * gpu,
    )


def start_cost(settings: Settings, prices: Prices, gpu_hourly: float) -> Start:
    """A NAT instance takes nothing for what passes it, and the bucket is reached past both."""
    noticed, weights = BUDGET[0], 0.0 if settings.base_model_mirror else settings.model_shape.weights_gib * _GB_PER_GIB
    transfer_gb = VLLM_IMAGE_GB + weights
    return Start(
        (FROM_ZERO.low - noticed.low) / 3600 * gpu_hourly,
        (FROM_ZERO.high - noticed.high) / 3600 * gpu_hourly,
        settings.gpu_idle_minutes / 60 * gpu_hourly,
        0.0 if settings.nat == "instance" else transfer_gb * prices.nat_per_gb,
        transfer_gb,
    )


def _zones(settings: Settings) -> int:
    return len(settings.availability_zones) or settings.availability_zone_count
