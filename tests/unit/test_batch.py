"""A file of requests: each is answered, whatever happens on the way, and the results are in the file's order."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loraserve import bulk
from loraserve.bulk import BatchStopped, InvalidBatch
from loraserve.operator.cli import main
from loraserve.operator.models import batch
from loraserve.operator.models.batch import Outcome, read_rows
from tests.unit.gateway_world import BASE, World, adapter, error, world


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_PAUSE_SECONDS", 0.05)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def row(name: str, **body: Any) -> dict[str, Any]:
    asked = {"model": "faq", "messages": [{"role": "user", "content": name}]} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def written(folder: Path, *rows: dict[str, Any]) -> list[batch.Row]:
    file = folder / "batch.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return read_rows(file)


def run(at: World, rows: list[batch.Row], output: Path, **more: Any) -> Outcome:
    more = {"connect": lambda: contextlib.nullcontext(at.url), "key": at.key, "concurrency": 4} | more
    return batch.run(rows, output, **more)


def results(output: Path) -> dict[str, dict[str, Any]]:
    """By custom_id, in the file's order."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {line["custom_id"]: line for line in lines}


def asked(at: World) -> list[str]:
    return [request["messages"][0]["content"] for request in at.pods[0].requests]


def behave(at: World, answer: Callable[[str], web.Response | None]) -> None:
    """`answer` is given a row's custom_id; None: the usual answer."""
    pod = at.pods[0]

    async def behaviour(_: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer(body["messages"][0]["content"]) or pod._whole(body)

    pod.behaviour = behaviour


def test_results_are_in_the_files_order_with_each_rows_error(serving: World, tmp_path: Path, output: Path) -> None:
    behave(serving, lambda name: error(400, "This is too long.") if name == "row-3" else None)
    rows = written(tmp_path, *(row(f"row-{number}") for number in range(20)))

    assert run(serving, rows, output) == Outcome(answered=19, refused=1, given_up=0)

    found = results(output)
    assert list(found) == [f"row-{number}" for number in range(20)]
    assert found["row-0"]["response"]["status_code"] == 200
    assert found["row-0"]["response"]["body"]["choices"][0]["message"]["content"] == "faq@v1 says hello"
    assert found["row-3"]["response"]["status_code"] == 400
    assert found["row-3"]["response"]["body"]["error"]["message"] == "This is too long."
    assert [path.name for path in tmp_path.glob("results*")] == [output.name]


def test_its_requests_come_after_interactive_ones(serving: World, tmp_path: Path, output: Path) -> None:
    run(serving, written(tmp_path, row("waits"), row("does not", service_tier="default")), output)
    priorities = {
        name: pod["x-vllm-priority"] for name, pod in zip(asked(serving), serving.pods[0].headers, strict=True)
    }
    assert priorities == {"waits": "1", "does not": "0"}


def test_a_run_that_was_killed_goes_on_where_it_stopped(serving: World, tmp_path: Path, output: Path) -> None:
    rows = written(tmp_path, *(row(f"row-{number}") for number in range(6)))

    def die(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(serving, rows, output, concurrency=1, on_progress=die)
    with output.with_name("results.jsonl.partial").open("ab") as torn:
        torn.write(b'{"row": "cut sho')
    assert not output.exists()
    serving.pods[0].requests.clear()

    changed = written(tmp_path, row("row-0", temperature=0), *(row(f"row-{number}") for number in range(1, 6)))
    assert run(serving, changed, output) == Outcome(answered=6, refused=0, given_up=0)
    assert not {"row-1", "row-2"} & set(asked(serving)), "these had their answer"
    assert {"row-0", "row-5"} <= set(asked(serving)), "the first was changed since"
    assert list(results(output)) == [f"row-{number}" for number in range(6)]


def test_a_sleeping_model_is_woken_once_for_all_rows(at: World, tmp_path: Path, output: Path) -> None:
    at.start(adapter(), pods=0)
    rows = written(tmp_path, *(row(f"row-{number}") for number in range(12)))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, at, rows, output)
        at.wait_for_load(waiting=4)
        at.show_pods(1)
        assert running.result() == Outcome(answered=12, refused=0, given_up=0)
    assert "loraserve_gateway_cold_starts_total 1.0" in at.inner("/metrics").text
    assert sorted(asked(at)) == sorted(f"row-{number}" for number in range(12))


def test_temporary_failures_are_tried_again(serving: World, tmp_path: Path, output: Path) -> None:
    failed: set[str] = set()

    def fail_once(name: str) -> web.Response | None:
        if name in failed:
            return None
        failed.add(name)
        return error(503, "No room.")

    behave(serving, fail_once)
    rows = written(tmp_path, *(row(f"row-{number}") for number in range(8)))
    assert run(serving, rows, output) == Outcome(answered=8, refused=0, given_up=0)
    assert sorted(asked(serving)) == sorted([entry.custom_id for entry in rows] * 2)


def test_who_is_told_to_come_back_later_does_then(tmp_path: Path) -> None:
    with world(tmp_path, wait_seconds=0.1, cold_start_seconds=40) as at:
        at.start(adapter(), pods=0)
        (asleep,) = written(tmp_path, row("a"))
        answer = bulk._Round(at.url, at.key, [asleep], 1)._ask(asleep)
    assert isinstance(answer, bulk._Failure)
    assert (answer.reason, answer.is_lost) == ("faq is not ready yet; try again later.", False)
    assert 35 <= answer.pause_seconds <= 40


def test_a_lost_way_to_the_gateway_is_made_anew(serving: World, tmp_path: Path, output: Path) -> None:
    ways = iter(["http://127.0.0.1:9", serving.url])
    outcome = run(
        serving, written(tmp_path, row("a"), row("b")), output, connect=lambda: contextlib.nullcontext(next(ways))
    )
    assert outcome == Outcome(answered=2, refused=0, given_up=0)


def test_what_cannot_be_answered_now_is_given_up_and_tried_by_the_next_run(
    serving: World, tmp_path: Path, output: Path
) -> None:
    broken = threading.Event()
    broken.set()
    behave(serving, lambda name: error(503, "No room.") if name == "b" and broken.is_set() else None)
    rows = written(tmp_path, row("a"), row("b"))

    assert run(serving, rows, output, patience_seconds=0) == Outcome(answered=1, refused=0, given_up=1)
    assert results(output)["b"]["error"] == {"code": "given_up", "message": "No room."}

    broken.clear()
    serving.pods[0].requests.clear()
    assert run(serving, rows, output) == Outcome(answered=2, refused=0, given_up=0)
    assert asked(serving) == ["b"]
    assert results(output)["b"]["error"] is None


def test_finished_results_are_not_overwritten(serving: World, tmp_path: Path, output: Path) -> None:
    rows = written(tmp_path, row("a"))
    run(serving, rows, output)
    with pytest.raises(InvalidBatch, match="is there already"):
        run(serving, rows, output)


def test_two_runs_do_not_write_to_one_file(serving: World, tmp_path: Path, output: Path) -> None:
    with bulk.Journal(output.with_name("results.jsonl.partial")), pytest.raises(InvalidBatch, match="another run"):
        run(serving, written(tmp_path, row("a")), output)


def test_a_wrong_key_or_model_is_told_once_before_anything_is_asked(
    serving: World, tmp_path: Path, output: Path
) -> None:
    rows = written(tmp_path, row("a"), row("b", model="faq@v1"), row("c", model="nobody"))
    with pytest.raises(InvalidBatch, match=f"nobody: choose from {BASE}, faq"):
        run(serving, rows, output)
    with pytest.raises(BatchStopped, match="key is not valid"):
        run(serving, rows, output, key="lsk-wrong")
    assert not serving.pods[0].requests


def test_the_command_writes_beside_the_file_and_its_exit_code_tells_of_errors(
    serving: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(serving, lambda name: error(400, "Too long.") if name == "b" else None)
    written(tmp_path, row("a"), row("b"))
    words = ["batch", str(tmp_path / "batch.jsonl"), "--url", f"{serving.url}/v1", "--key", serving.key]
    assert main([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": str(tmp_path / "batch.results.jsonl"), "answered": 1, "refused": 1, "given_up": 0}
    assert list(results(Path(told["output"]))) == ["a", "b"]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    lines = [
        json.dumps(row("a")),
        "{",
        json.dumps(row("b") | {"url": "/v1/embeddings"}),
        "",
        json.dumps(row("c", stream=True)),
        json.dumps(row("a")),
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(InvalidBatch) as refused:
        read_rows(file)
    told = str(refused.value)
    for part in ("line 2: ", "line 3: url: ", "line 5: body: ", "custom_id 'a' stands in several lines"):
        assert part in told
