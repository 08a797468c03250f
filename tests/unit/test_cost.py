"""Idle cost is a design input."""

from __future__ import annotations

import pytest

from loraserve.planning.cost import describe, idle_cost
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
