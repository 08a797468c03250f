"""The values that charts are given are ones that they take, by a record that holds for one version of each."""

from __future__ import annotations

import pytest

from tests.chart_values import RECORD, problems, record_errors
from tests.unit.declared import declare


@pytest.mark.parametrize(("stack", "changes"), [("dev", {}), ("prod", {}), ("dev", {"gpuSpot": True})])
def test_every_chart_takes_what_it_is_given(stack: str, changes: dict[str, bool]) -> None:
    charts = {chart.name: chart.inputs for chart in declare(stack, **changes).of_type("helm.sh/v4:Chart")}
    assert {name: chart["version"] for name, chart in charts.items()} == {
        name: record["version"] for name, record in RECORD.items()
    }, "read the values of another version, then record it in tests/chart_values.yaml"
    for name, chart in charts.items():
        assert list(problems(chart["values"], RECORD[name]["values"])) == []


def test_a_misspelt_key_and_a_wrong_type_are_found() -> None:
    taken = {"rbac": {"create": "boolean"}, "resources": "map", "name": "string"}
    assert list(problems({"rbac": {"create": True}, "resources": {"any": {"thing": 1}}}, taken)) == []
    wrong = {"rbac": {"creat": True}, "resources": [], "nam": "x", "name": 1}
    assert list(problems(wrong, taken)) == [
        "rbac/creat: no such key",
        "resources: [] is no map",
        "nam: no such key",
        "name: 1 is no string",
    ]
    assert list(problems({"rbac": True}, taken)) == ["rbac: True is no map"]


def test_a_record_of_what_a_chart_has_not_is_found() -> None:
    defaults = {"rbac": {"create": True}, "resources": {}, "name": None}
    assert list(record_errors({"rbac": {"create": "boolean"}, "resources": "map", "name": "string"}, defaults)) == []
    assert list(record_errors({"rbac": {"made": "boolean"}, "resources": "list"}, defaults)) == [
        "rbac/made: the chart has no such key",
        "resources: the chart's own is {}, no list",
    ]
