"""What a stack costs while nobody asks: on-demand list prices, GPU group at zero, no traffic. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from loraserve.planning.instance_types import NAT_INSTANCE_TYPE, NAT_VOLUME_GIB, SYSTEM_VOLUME_GIB
from loraserve.planning.stack_settings import Settings

HOURS = 730
_CONTROL_PLANE_HOURLY = 0.10
_PUBLIC_ADDRESS_HOURLY = 0.005
_COMPRESSED = 0.15
"""Of a log's size, as CloudWatch keeps it: what its price list reckons with."""


@dataclass(frozen=True)
class Prices:
    """List prices of one region, US dollars: per hour, volumes per GB and month."""

    instances: dict[str, float]
    nat_gateway: float
    nat_per_gb: float
    """What passes a NAT gateway, besides its hours."""
    gp3: float
    load_balancer: float
    log_gb: float
    """What CloudWatch takes in."""
    log_gb_month: float
    """What it keeps, as it keeps it."""


PRICES = {
    "us-east-1": Prices(
        {
            "t3a.medium": 0.0376,
            "t3.medium": 0.0416,
            "t4g.nano": 0.0042,
            "g4dn.xlarge": 0.526,
            "g5.xlarge": 1.006,
            "g5.2xlarge": 1.212,
            "g6.xlarge": 0.8048,
            "g6.2xlarge": 0.9776,
            "g6.4xlarge": 1.3232,
            "g6e.xlarge": 1.861,
            "g6e.2xlarge": 2.24208,
            "g6.12xlarge": 4.6016,
            "g6e.12xlarge": 10.49264,
            "p4d.24xlarge": 21.957642,
            "p5.48xlarge": 55.04,
        },
        0.045,
        0.045,
        0.08,
        0.0225,
        0.50,
        0.03,
    ),
    "eu-central-1": Prices(
        {"t3a.medium": 0.0432, "t3.medium": 0.0480, "t4g.nano": 0.0048, "g6.xlarge": 1.0061},
        0.052,
        0.052,
        0.0952,
        0.027,
        0.63,
        0.0324,
    ),
}
"""Of GPUs in us-east-1: Karpenter's table of 2026-07-20 (`zz_generated.pricing_aws.go`), which has no other region."""


def idle_cost(settings: Settings, region: str, zones: int) -> dict[str, float] | None:
    """US dollars a month per part, or None where this region's or instance type's price is not known here."""
    prices = PRICES.get(region)
    if not prices or settings.system_instance_type not in prices.instances:
        return None
    if settings.cluster_stack:
        return {f"the rest is of stack {settings.cluster_stack}": 0.0}
    nodes = settings.system_node_count
    parts = {
        "control plane": HOURS * _CONTROL_PLANE_HOURLY,
        f"{nodes} x {settings.system_instance_type}": nodes * HOURS * prices.instances[settings.system_instance_type],
        "node volumes": nodes * SYSTEM_VOLUME_GIB * prices.gp3,
    }
    if settings.nat == "instance":
        parts[f"NAT instance ({NAT_INSTANCE_TYPE})"] = HOURS * prices.instances[NAT_INSTANCE_TYPE]
        parts["NAT volume"] = NAT_VOLUME_GIB * prices.gp3
    gateways = {"instance": 0, "gateway": 1, "gateway-per-zone": zones}[settings.nat]
    if gateways:
        parts[f"{gateways} x NAT gateway"] = gateways * HOURS * prices.nat_gateway
    parts["public addresses"] = max(gateways, 1) * HOURS * _PUBLIC_ADDRESS_HOURLY
    if settings.needs_volume_driver:
        parts["Prometheus volume"] = settings.prometheus_volume_gib * prices.gp3
    if settings.gateway_certificate_arn:
        parts["load balancer"] = HOURS * prices.load_balancer
    if days := settings.pod_log_days:
        kept = _COMPRESSED * days * 24 / HOURS
        parts[f"pod logs (1 GB a month, kept {days} days)"] = prices.log_gb + kept * prices.log_gb_month
    return parts


@dataclass(frozen=True)
class HourlyCost:
    """List prices in US dollars."""

    idle: float
    gpu_node: float


def hourly_cost(settings: Settings, region: str, zones: int) -> HourlyCost | None:
    """None where a price is not known here."""
    parts, prices = idle_cost(settings, region, zones), PRICES.get(region)
    gpu = prices.instances.get(settings.gpu_instance_type) if prices else None
    return HourlyCost(sum(parts.values()) / HOURS, gpu) if parts and gpu else None


def describe(settings: Settings, region: str, zones: int) -> str:
    """One line for people."""
    parts, prices = idle_cost(settings, region, zones), PRICES.get(region)
    if not parts or not prices:
        return "idle cost: no list prices known here for this region or instance type; add them to loraserve/planning/cost.py"
    listed = ", ".join(f"{name} {amount:.2f}" for name, amount in parts.items())
    gpu = prices.instances.get(settings.gpu_instance_type)
    running = f"; each GPU node adds {gpu:.2f} an hour" if gpu else ""
    return f"idle cost: about ${sum(parts.values()):.0f} a month ({listed}){running}; control-plane logs and traffic excluded"
