"""A change of each setting touches what docs/changes.md says, and no setting replaces what holds the rest."""

from __future__ import annotations

import re

import pytest
from pydantic.alias_generators import to_camel

from infra.errors import ConfigError
from loraserve.planning.stack_settings import Settings
from tests.engine.setting_changes import (
    APPLIED,
    CHANGES,
    PREVIEWED,
    REFUSED,
    added_up,
    counted,
    declared,
    documented,
    documented_counts,
    touched,
)
from tests.unit.declared import Program

ROWS = documented()
_NEW_NODES = {"GPU": r"±NodeGroup gpu-vllm-nodes|~LaunchTemplate gpu-vllm-nodes", "system": r"±NodeGroup system-nodes"}


@pytest.fixture(scope="module")
def stands() -> Program:
    return declared()


def test_every_setting_has_a_row_and_a_changed_value() -> None:
    settings = [to_camel(field) for field in Settings.model_fields]
    assert sorted(CHANGES) == sorted(settings) == sorted(ROWS)


@pytest.mark.parametrize("setting", CHANGES)
def test_a_change_of_one_setting_touches_what_its_row_says(stands: Program, setting: str) -> None:
    if ROWS[setting] == REFUSED:
        with pytest.raises(ConfigError, match=setting):
            declared(**{setting: CHANGES[setting]})
        return
    changed = declared(**{setting: CHANGES[setting]})
    assert touched(stands, changed) == ROWS[setting]
    for group, new_nodes in _NEW_NODES.items():
        announced = any(f"this replaces the {group} nodes" in message for message in changed.messages)
        assert announced is bool(re.search(new_nodes, ROWS[setting])), f"{group} nodes"


def test_each_row_is_counted() -> None:
    assert documented_counts() == {setting: counted(row) for setting, row in ROWS.items()}


@pytest.mark.parametrize("settings", [APPLIED, PREVIEWED], ids=["applied", "previewed"])
def test_what_settings_touch_adds_up(stands: Program, settings: tuple[str, ...]) -> None:
    together = declared(**{setting: CHANGES[setting] for setting in settings})
    assert set(touched(stands, together).split(", ")) == added_up(ROWS[setting] for setting in settings)


def test_no_setting_replaces_or_ends_the_vpc_the_cluster_or_the_bucket() -> None:
    assert not [row for row in ROWS.values() if re.search(r"[±-](Vpc|Cluster|Bucket\w*|Subnet) ", row)]
