"""The load test: what is planned, how it is accounted for, and that what is made is what was planned."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from bench.constant_upstream import Http, answer
from bench.known_latency import ADAPTER, BASE, Model
from local.paths import CHECKOUT
from loraserve.loadtest import saturation, schedule
from loraserve.loadtest.accounting import Outcome, problems, quantiles, summaries, summarize
from loraserve.loadtest.client import Target, run
from loraserve.loadtest.prompts import MAX_TOKENS, Kind, prompt, retrieved_words_for
from loraserve.loadtest.report import Result, page, timeline
from loraserve.loadtest.schedule import FIVE_PHASES, Call, Phase
from loraserve.operator.cli import main
from loraserve.planning.objectives import Objective

MODELS = schedule.base_and_adapters("base", ["faq"])
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_five_phases_are_those_of_the_baseline() -> None:
    calls = schedule.schedule(FIVE_PHASES, MODELS, seed=1)
    counts = Counter(call.phase for call in calls)
    assert counts == {"warm-up": 240, "normal": 1200, "spike": 2160, "recovery": 900, "cool-down": 240}
    assert sum(phase.seconds for phase in FIVE_PHASES) == 14 * 60
    mixes = {
        "warm-up": (7, 3, 0),
        "normal": (5, 3, 2),
        "spike": (3, 4, 3),
        "recovery": (5, 3, 2),
        "cool-down": (8, 2, 0),
    }
    for phase, mix in mixes.items():
        kinds = Counter(call.kind for call in calls if call.phase == phase)
        assert [kinds[kind] * 10 for kind in Kind] == [part * counts[phase] for part in mix]
        asked = Counter(call.model for call in calls if call.phase == phase)
        assert asked["faq"] * 10 == counts[phase] * 7


def test_calls_follow_from_the_seed_alone_and_come_as_a_poisson_process() -> None:
    phase = Phase("one", 100, 10, schedule.NORMAL)
    calls = schedule.schedule([phase], MODELS, seed=1)
    assert calls == schedule.schedule([phase], MODELS, seed=1)
    assert calls != schedule.schedule([phase], MODELS, seed=2)
    gaps = [later.due - earlier.due for earlier, later in pairwise(calls)]
    assert min(gaps) >= 0
    # Of exponential gaps the deviation is the mean; of constant ones it is 0.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)
    assert len({call.prompt for call in calls}) == len(calls)


@pytest.mark.parametrize("longest", [512, 1024, 4096])
def test_a_prompt_fits_the_models_context_where_every_byte_is_a_token(longest: int) -> None:
    words = retrieved_words_for(longest)
    for seed in range(300):
        assert len(prompt(Kind.RAG, random.Random(seed), words)) + MAX_TOKENS[Kind.RAG] < longest


def test_tenants_are_asked_by_zipfs_law() -> None:
    shares = schedule.portions(schedule.zipf(["a", "b", "c", "d"], 1), 2500)
    assert shares == {"a": 1200, "b": 600, "c": 400, "d": 300}


def test_portions_add_up() -> None:
    assert schedule.portions({"a": 1, "b": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}


def _outcome(due: float = 0, took: float = 0.1, **changes: Any) -> Outcome:
    call = Call(due, str(changes.pop("phase", "normal")), str(changes.pop("model", "faq")), Kind.SHORT, "?")
    made = Outcome(call, due, [due + took], due + 2 * took, 1, "faq@v1")
    return replace(made, **changes)


def test_what_a_call_waited_in_the_client_is_part_of_its_latency() -> None:
    outcome = _outcome(due=1, sent=3.0, pieces=[3.5, 3.75], ended=4.0)
    assert (outcome.first_token, outcome.end_to_end, list(outcome.between)) == (2.5, 3.0, [0.25])


def test_quantiles_have_intervals_where_the_sample_is_large_enough() -> None:
    half, high = quantiles([float(n) for n in range(1, 101)], [0.5, 0.99])
    assert (half.value, half.low, half.high) == (50, 40, 61)
    assert (high.value, high.high) == (99, None)


def test_an_interval_covers_the_true_quantile_as_often_as_it_says() -> None:
    rng = random.Random(1)
    samples = ([rng.random() for _ in range(200)] for _ in range(400))
    found = [quantiles(sample, [0.9])[0] for sample in samples]
    covered = sum((one.low or 0) <= 0.9 <= (one.high or 1) for one in found)
    assert 0.93 < covered / len(found) <= 0.99


def test_outcomes_are_told_apart_by_phase_model_and_version() -> None:
    outcomes = [_outcome(), _outcome(phase="spike"), _outcome(served="faq@v2"), _outcome(model="base", served="base")]
    rows = {(row.phase, row.model, row.version): row.calls for row in summaries(outcomes, {})}
    assert rows[None, None, None] == 4
    assert rows["normal", None, None] == 3
    assert rows[None, "faq", "v1"] == 2
    assert rows["normal", "faq", "v2"] == rows["normal", "base", "base"] == rows["spike", "faq", "v1"] == 1


def test_goodput_counts_what_came_within_the_models_own_objective() -> None:
    outcomes = [_outcome(took=0.1), _outcome(took=0.4), _outcome(error="overloaded")]
    strict = {"faq": Objective(first_token_seconds=0.2)}
    assert summarize(outcomes, strict).good == 1
    assert summarize(outcomes, {}).good == 2


@pytest.mark.parametrize(
    ("outcomes", "problem"),
    [
        ([_outcome()] * 100, None),
        ([_outcome(took=6)] * 6 + [_outcome()] * 94, "94.0% of the answers began within 5 s, 95.0%"),
        ([_outcome(error="upstream_error")] * 2 + [_outcome()] * 98, r"98.00% .* \(2 x upstream_error\)"),
        ([_outcome(phase="overload", error="overloaded")] * 100, None),
        ([_outcome(phase="overload", error="connection")] * 3, "3 calls ended in connection in a phase without"),
        ([_outcome(sent=0.011)] * 2 + [_outcome()] * 98, "2 of 100 calls left more than 10 ms late"),
    ],
    ids=[
        "all is well",
        "first tokens too late",
        "too many errors",
        "refused under overload",
        "broken under overload",
        "client too slow",
    ],
)
def test_a_missed_threshold_is_told(outcomes: list[Outcome], problem: str | None) -> None:
    found = problems(outcomes, {}, ["normal"])
    assert len(found) == (problem is not None)
    assert problem is None or re.search(problem, found[0])


def _step(rate: float, seconds: float, took: float) -> saturation.Step:
    """Calls that each take so long, the last ones of which are still open at the end."""
    outcomes = [_outcome(due=at / rate, took=took / 2) for at in range(int(rate * seconds))]
    return saturation.judge(saturation.phase(rate, seconds), outcomes, {}, None)


def test_the_operating_point_is_seventy_percent_of_the_knee_and_its_requests_at_once_follow_by_littles_law() -> None:
    steps = [_step(2, 60, 1.0), _step(4, 60, 2.0), _step(8, 60, 30.0)]
    assert [step.keeps_up for step in steps] == [True, True, False]
    found = saturation.find(steps, replicas=1)
    assert found
    assert (found.knee, found.reached, found.operating_rate) == (4, True, pytest.approx(2.8))
    assert found.requests_per_replica == 3  # 2.8 a second, each 1.4 s
    two = saturation.find(steps, replicas=2)
    assert two
    assert two.requests_per_replica == 1


def test_a_rate_that_misses_an_objective_or_was_never_too_much_is_no_knee() -> None:
    assert saturation.find([_step(1, 60, 12.0)], 1) is None
    found = saturation.find([_step(2, 60, 1.0)], 1)
    assert found
    assert not found.reached


def _result(outcomes: list[Outcome], **changes: Any) -> Result:
    result = Result(
        "five phases", "http://x/v1", "2027-01-01", 1, FIVE_PHASES, {"faq": 1.0}, summaries(outcomes, {}),
        timeline(outcomes), None, ("<b> is missed",),
    )  # fmt: skip
    return replace(result, **changes)


def test_the_page_needs_nothing_else_and_shows_what_was_missed() -> None:
    outcomes = [_outcome(due=float(at)) for at in range(60)]
    for result in (_result(outcomes), _result([], saturation=saturation.find([_step(2, 60, 1.0)], 1))):
        html = page(result)
        assert "&lt;b&gt; is missed" in html
        assert html.count("<svg") == html.count("</svg>") >= 2
        assert not re.search(r"<script|<link|src=|href=|url\(|@import", html)
        json.dumps(result.plain())


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make browser")
def test_the_page_is_no_wider_than_a_screen_and_names_what_failed() -> None:
    outcomes = [_outcome(due=float(at), took=20 + at) for at in range(300)] + [_outcome(error="overloaded")] * 40
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.set_content(page(_result(outcomes)))
        assert shown.evaluate("document.documentElement.scrollWidth") <= 1280
        assert shown.locator("tr", has_text="normal, faq, v1").get_by_text("40 overloaded").is_visible()
        browser.close()


async def _calls_of(respond: Callable[[Http, bytes, bytes], None], calls: tuple[Call, ...]) -> list[Outcome]:
    server = await asyncio.get_running_loop().create_server(lambda: Http(respond), "127.0.0.1", 0)
    async with server:
        return await run(Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "none"), calls)


def test_every_planned_call_is_made_and_its_answer_read() -> None:
    calls = schedule.schedule([Phase("one", 0.2, 100, schedule.NORMAL)], {BASE: 0.3, ADAPTER: 0.7}, seed=1)
    outcomes = asyncio.run(_calls_of(Model(is_fast=True).respond, calls))
    assert sorted(one.call.due for one in outcomes) == [call.due for call in calls]
    assert {(one.call.model, one.version, one.error) for one in outcomes} == {
        (BASE, "base", None),
        (ADAPTER, "v1", None),
    }
    assert all(one.call.due <= one.sent <= one.pieces[0] <= one.ended and one.tokens == 1 for one in outcomes)


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_TOKEN = b': waiting\ndata: {"model": "faq@v1", "choices": [{"text": "a"}]}\n\n'


@pytest.mark.parametrize(
    ("answered", "error"),
    [
        (answer(b'{"error": {"code": "overloaded"}}').replace(b"200 OK", b"503 X"), "overloaded"),
        (answer(b"<html>").replace(b"200 OK", b"502 X"), "http_502"),
        (_STREAM + _TOKEN + b'data: {"error": {"code": "upstream_error"}}\n\n', "upstream_error"),
        (_STREAM + _TOKEN, "broke_off"),
        (b"", "connection"),
    ],
    ids=["refused", "no gateway", "error in the stream", "stream cut", "connection cut"],
)
def test_a_failed_call_is_told_by_its_reason(answered: bytes, error: str) -> None:
    def respond(http: Http, _head: bytes, _body: bytes) -> None:
        http.write(answered)
        assert http.transport
        http.transport.close()

    (outcome,) = asyncio.run(_calls_of(respond, (Call(0, "one", "faq", Kind.SHORT, "?"),)))
    assert outcome.error == error


@pytest.fixture
def fast_model() -> Iterator[str]:
    """The URL of a model that answers at once, in a thread of its own."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        server = await loop.create_server(lambda: Http(Model(is_fast=True).respond), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.run_forever()), daemon=True)
    thread.start()
    started.wait(10)
    yield f"http://127.0.0.1:{ports[0]}/v1"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_the_command_writes_its_report_and_says_by_its_code_whether_objectives_hold(
    fast_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    common = ["--key", "k", "--url", fast_model, "--report", str(report), "--json"]
    main(["loadtest", "phases", "--duration-factor", "0.002", *common])
    said = capsys.readouterr().out
    told = json.loads(said)
    assert told["summaries"][0]["succeeded"] == told["summaries"][0]["calls"] > 0
    assert "five phases" in report.read_text()
    (tmp_path / "result.json").write_text(f"normal: 2 s, sent 3\n{said}")  # as a pod's log has it
    assert main(["loadtest", "render", str(tmp_path / "result.json"), str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == report.read_text()
    stack_file = tmp_path / "Pulumi.dev.yaml"
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (tmp_path / name).write_text((CHECKOUT / name).read_text())
    sweep = ["loadtest", "sweep", "--step-seconds", "1", "--first-rate", "20", "--most-rate", "20"]
    code = main([*sweep, "--write", str(stack_file), *common[:4]])
    written = re.findall(r"^  loraserve:requestsPerReplica: (\d+)$", stack_file.read_text(), re.MULTILINE)
    assert written == (["1"] if code == 0 else []), "a client that could not keep up has found nothing"
    assert re.search(
        r"knee 20 requests/s or more.*\nloraserve:requestsPerReplica: 1", capsys.readouterr().out, re.DOTALL
    )


def test_a_strange_adapter_is_refused(fast_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "phases", "--key", "k", "--url", fast_model, "--adapter", "nope"]) == 1
    assert "the key may not call nope: choose from faq" in capsys.readouterr().err
