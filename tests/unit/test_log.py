"""What a line of the log holds, as text and as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timedelta
from typing import Any

from loraserve.gateway.metrics import Metrics
from loraserve.gateway.record import Record
from loraserve.log import Event, JsonFormatter, event

KEY = "lsk-0a1b2c3d-" + "s3cret_-" * 5


def as_json(message: object, *arguments: object, failed: BaseException | None = None) -> dict[str, Any]:
    raised = failed and (type(failed), failed, failed.__traceback__)
    record = logging.LogRecord("loraserve.x", logging.INFO, "", 0, message, arguments, raised)
    line = JsonFormatter("gateway").format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_line_for_people_has_the_fields_behind_the_message() -> None:
    assert event("adapter ready", adapter="a@v1", reason="not yet") == "adapter ready adapter=a@v1 reason='not yet'"


def test_the_same_as_json_has_them_as_its_own() -> None:
    line = as_json(event("adapter ready", adapter="a@v1", seconds=1.5, error=ValueError("no")))
    time = datetime.fromisoformat(line.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert line == {
        "level": "INFO",
        "process": "gateway",
        "logger": "loraserve.x",
        "message": "adapter ready",
        "adapter": "a@v1",
        "seconds": 1.5,
        "error": "no",
    }


def test_what_libraries_log_has_the_same_schema() -> None:
    line = as_json("took %d of %s", 3, "them")
    assert line["message"] == "took 3 of them"
    assert line.keys() == {"time", "level", "process", "logger", "message"}


def test_a_field_never_takes_the_place_of_the_schemas() -> None:
    assert as_json(event("x", level="mine", process="mine"))["level"] == "INFO"


def test_no_key_gets_into_json_and_what_held_one_stays_json() -> None:
    try:
        raise ValueError(f'{{"Authorization": "Bearer {KEY}"}}')
    except ValueError as error:
        line = as_json(event("failed", body=f'{{"key": "{KEY}"}}'), failed=error)
    assert "s3cret" not in json.dumps(line)
    assert line["body"] == '{"key": "lsk-0a1b2c3d-..."}'
    assert "Traceback" in line["exception"]
    assert sys.exc_info() == (None, None, None)


def test_a_request_is_one_object_with_numbers(caplog: Any) -> None:
    caplog.set_level("INFO")
    record = Record(path="/v1/completions", request_id="r-1", tenant="team-a", status=200, completion_tokens=5)
    record.first_byte = 0.12345
    record.finish(Metrics())
    told = caplog.records[-1].msg
    assert isinstance(told, Event)
    line = as_json(told)
    assert (line["message"], line["request_id"], line["status"], line["tokens_out"]) == ("request", "r-1", 200, 5)
    assert line["ttft"] == 0.123
