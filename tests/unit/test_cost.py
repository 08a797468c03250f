"""Idle cost is a design input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from local.paths import CHECKOUT
from loraserve.operator.cli import main
from loraserve.planning.cost import describe, idle_cost
from loraserve.planning.cost_of_use import VLLM_IMAGE_GB, PriceUnknown, Use, estimate
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values


def total(stack: str, region: str) -> float:
    parts = idle_cost(parse(stack_values(stack)), region, zones=2)
    assert parts
    return sum(parts.values())


def test_dev_at_rest_costs_at_most_110_whole_dollars_a_month_in_us_east_1() -> None:
    assert round(total("dev", "us-east-1")) <= 110


def test_the_sum_is_told_by_its_parts() -> None:
    parts = idle_cost(parse(stack_values("dev")), "us-east-1", zones=2)
    assert parts
    assert parts["control plane"] == pytest.approx(73.0)
    told = describe(parse(stack_values("dev")), "us-east-1", zones=2)
    assert f"about ${sum(parts.values()):.0f} a month" in told
    assert all(part in told for part in parts)


def test_each_zones_gateway_is_counted() -> None:
    parts = idle_cost(parse(stack_values("prod")), "us-east-1", zones=3)
    assert parts
    assert parts["3 x NAT gateway"] == pytest.approx(3 * 730 * 0.045)


def test_an_unknown_region_is_said_to_be_unknown() -> None:
    assert "no list prices known" in describe(parse(stack_values("dev")), "mars-north-1", zones=2)


def test_a_load_balancer_is_counted() -> None:
    arn = "arn:aws:acm:us-east-1:123456789012:certificate/0123"
    parts = idle_cost(parse(stack_values("dev", gatewayCertificateArn=arn)), "us-east-1", zones=2)
    assert parts
    assert parts["load balancer"] == pytest.approx(730 * 0.0225)
    assert "load balancer" not in (idle_cost(parse(stack_values("dev")), "us-east-1", zones=2) or {})


USE = Use(hours_per_day=4, starts_per_day=3, tenants=30)


def test_a_start_costs_the_node_until_it_answers_its_idle_end_and_what_passes_a_nat_gateway() -> None:
    dev = estimate(parse(stack_values("dev")), "us-east-1", USE).start
    assert dev.until_first_token_low == pytest.approx(266 / 3600 * 0.8048)
    assert dev.until_first_token_high == pytest.approx(540 / 3600 * 0.8048)
    assert dev.idle_at_its_end == pytest.approx(10 / 60 * 0.8048)
    assert dev.transfer == 0, "a NAT instance takes nothing for it"
    behind_gateway = estimate(parse(stack_values("dev", nat="gateway")), "us-east-1", USE).start
    assert behind_gateway.transfer == pytest.approx(behind_gateway.transfer_gb * 0.045)
    assert behind_gateway.high - dev.high == pytest.approx(behind_gateway.transfer)


def test_mirrored_weights_do_not_pass_the_nat() -> None:
    mirror = {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 4 << 30}
    mirrored = estimate(parse(stack_values("dev", nat="gateway", baseModelMirror=mirror)), "us-east-1", USE).start
    assert (
        mirrored.transfer_gb == VLLM_IMAGE_GB < estimate(parse(stack_values("dev")), "us-east-1", USE).start.transfer_gb
    )


def test_a_month_is_its_floor_its_hours_and_its_starts_and_what_it_is_compared_with() -> None:
    found = estimate(parse(stack_values("dev")), "us-east-1", USE)
    days = 730 / 24
    assert found.month_low == pytest.approx(found.idle_month + days * (4 * 0.8048 + 3 * found.start.low))
    assert found.always_on_month == pytest.approx(found.idle_month + 730 * 0.8048)
    assert found.gpu_per_tenant_month - found.idle_month == pytest.approx(30 * 730 * 0.8048)
    assert found.month_low < found.month_high < found.always_on_month < found.gpu_per_tenant_month


def test_tokens_have_a_price_where_the_throughput_is_known() -> None:
    assert estimate(parse(stack_values("dev")), "us-east-1", USE).million_tokens is None
    fast = estimate(parse(stack_values("dev")), "us-east-1", replace(USE, tokens_per_second=1000))
    assert fast.million_tokens == pytest.approx(0.8048 / 3.6)


def test_what_has_no_known_price_is_named() -> None:
    with pytest.raises(PriceUnknown, match=r"g6.xlarge and t3a.medium in mars-north-1: add it to PRICES"):
        estimate(parse(stack_values("dev")), "mars-north-1", USE)


def test_the_command_shows_it_from_a_stack_file_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", str(CHECKOUT / "Pulumi.dev.yaml"), "--tokens-per-second", "500"]) == 0
    told = capsys.readouterr().out
    assert "a million tokens at 500/s" in told
    assert main(["cost", str(CHECKOUT / "Pulumi.dev.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu_hour"] == 1.0061
