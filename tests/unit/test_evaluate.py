"""`loraserve evaluate`, against a small server that answers as OpenAI's API does."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from local.paths import CHECKOUT
from loraserve import bulk
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.evaluations import read_verdicts
from loraserve.contract.evaluation import Result
from loraserve.operator.cli import main
from loraserve.operator.releases import evaluation_commands
from tests.unit.adapters_and_vllm import BUCKET

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")

BASE = "TheBloke/Mistral-7B-v0.1-AWQ"
V2, V3 = ("sha256:" + digit * 64 for digit in "23")

Behaviour = Callable[[str, str], "str | int | None"]
"""Given model and question: the text, a status, or None for the right answer."""


class FakeGateway:
    """Knows the answer to every question, `answer N` to `question N`, unless it is told to behave otherwise."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = lambda model, question: None
        self.judge: Callable[[str], str] = lambda prompt: "[[TIE]]"
        self.asked: list[dict[str, Any]] = []
        self.served: dict[str, str] = {}
        """Another version answers in a model's place."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": name} for name in (BASE, "faq", "judge-model")]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(body | {"path": self.path, "key": self.headers["Authorization"]})
                answer = fake.answer(body)
                if isinstance(answer, int):
                    self.send(answer, {"error": {"message": f"no ({answer})."}})
                    return
                text = {"message": {"content": answer}} if "messages" in body else {"text": answer}
                usage = {"prompt_tokens": 7, "completion_tokens": 3}
                choice = {**text, "finish_reason": "stop"}
                self.send(200, {"choices": [choice], "usage": usage}, fake.served.get(body["model"], body["model"]))

            def send(self, status: int, body: dict[str, Any], served: str | None = None) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if served:
                    self.send_header("X-Loraserve-Model", served)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body: dict[str, Any]) -> str | int:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if "[Answer A]" in prompt:
            return self.judge(prompt)
        question = re.findall(r"question \d+", prompt)[0]
        told = self.behaviour(body["model"], question)
        return f"The answer {question.split()[1]}." if told is None else told

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


G = TypeVar("G", bound=FakeGateway)


@contextmanager
def serving(fake: G) -> Iterator[G]:
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    monkeypatch.setattr(bulk, "_PAUSE_SECONDS", 0.01)
    with serving(FakeGateway()) as fake:
        yield fake


@cache
def _defaults() -> str:
    """Pulumi.yaml without its words."""
    declared = yaml.safe_load((CHECKOUT / "Pulumi.yaml").read_bytes())["config"]
    defaults = {key: {"default": entry["default"]} for key, entry in declared.items() if "default" in entry}
    return yaml.safe_dump({"config": defaults})


@pytest.fixture
def catalog(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Which the command then opens: another client of moto's takes half a second."""
    monkeypatch.setattr(evaluation_commands, "Bucket", lambda name, role=None: bucket)
    return bucket


class Files:
    """An evaluation, its rows and two stacks: dev has v3 as a canary beside v2, prod has v2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.evaluation: dict[str, Any] = {
            "rows": "rows.jsonl",
            "scorers": {"exact": {"kind": "normalised-match"}, "f1": {"kind": "token-f1"}},
            "primaryScore": "exact",
        }
        (folder / "Pulumi.yaml").write_text(_defaults())
        self.stack("dev", [self.entry("v2", V2), self.entry("v3", V3) | {"canaryPercent": 1}])
        self.stack("prod", [self.entry("v2", V2)])
        self.rows(5)

    @staticmethod
    def entry(version: str, digest: str) -> dict[str, Any]:
        return {
            "name": "faq",
            "model": "m-faq",
            "version": version,
            "digest": digest,
            "rank": 8,
            "targetModules": ["q_proj"],
            "sizeBytes": 1,
        }

    def stack(self, name: str, adapters: list[dict[str, Any]], **more: Any) -> None:
        config = {
            "loraserve:environment": "development",
            "loraserve:publicAccessCidrs": ["192.0.2.0/24"],
            "loraserve:adapters": adapters,
        } | {f"loraserve:{key}": value for key, value in more.items()}
        (self.folder / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": config}))

    def rows(self, count: int, name: str = "rows.jsonl", **more: Any) -> None:
        lines = [
            {
                "question": f"question {number}",
                "reference": f"answer {number}",
                "category": ["factual", "comparison", "conceptual"][number % 3],
            }
            | more
            for number in range(count)
        ]
        (self.folder / name).write_text("\n".join(map(json.dumps, lines)))

    @property
    def results(self) -> Path:
        return self.folder / "faq.results"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.results / "report.json").read_text())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def evaluate(
    files: Files, gateway: FakeGateway, *words: str, production: bool = True, candidate: str = "faq@v3"
) -> int:
    (files.folder / "faq.yaml").write_text(yaml.safe_dump(files.evaluation))
    dev, prod = (str(files.folder / f"Pulumi.{name}.yaml") for name in ("dev", "prod"))
    against = ["--production", prod] if production else []
    where = ["--stack-file", dev, *against, "--url", gateway.url, "--key", "k"]
    return main(["evaluate", str(files.folder / "faq.yaml"), "--candidate", candidate, *where, *words])


def right_until(model: str, count: int) -> Behaviour:
    """This model answers rightly only so many questions."""
    return lambda asked, question: "no idea" if asked == model and int(question.split()[1]) >= count else None


def test_the_published_6_to_14_of_15_passes_and_is_marked_as_small(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    files.rows(15)
    base, candidate = right_until(BASE, 6), right_until("faq@v3", 14)
    gateway.behaviour = lambda model, question: base(model, question) or candidate(model, question)
    assert evaluate(files, gateway, production=False) == 0
    told = capsys.readouterr()
    assert "PASS: faq@v3 by exact" in told.out
    assert "0.933 against 0.400 of the base" in told.out
    assert "on a small set" in told.out
    assert "773 to 1,546 would do" in told.err, "said before the run"


def test_15_rows_with_no_clear_difference_block_and_say_how_many_would_do(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    files.rows(15)
    gateway.behaviour = right_until("faq@v3", 14)
    assert evaluate(files, gateway) == 4
    assert "inconclusive, 773 to 1,546 rows would do" in capsys.readouterr().out


def test_a_worse_adapter_is_blocked(files: Files, gateway: FakeGateway) -> None:
    files.rows(15)
    gateway.behaviour = right_until("faq@v3", 6)
    assert evaluate(files, gateway) == 3


def test_all_three_and_an_a_a_run_are_asked_with_every_parameter_below_interactive_traffic(
    files: Files, gateway: FakeGateway
) -> None:
    evaluate(files, gateway)
    assert Counter(body["model"] for body in gateway.asked) == {BASE: 5, "faq@v2": 5, "faq@v3": 10}
    for body in gateway.asked:
        assert (body["temperature"], body["service_tier"]) == (0, "flex")
        assert {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "seed", "n"} <= body.keys()


def test_the_verdict_is_bound_to_what_was_compared_and_lies_in_the_bucket(
    files: Files, gateway: FakeGateway, catalog: Bucket
) -> None:
    files.rows(15)
    files.rows(12, "general.jsonl")
    files.evaluation |= {"general": "general.jsonl", "margin": 0.2}
    assert evaluate(files, gateway, "--record", "--bucket", BUCKET) == 0
    [verdict] = read_verdicts(catalog, "faq", "v3")
    assert (verdict.candidate.digest, verdict.base.name, verdict.result) == (V3, BASE, Result.PASS)
    assert verdict.primary.against
    assert verdict.general
    assert (verdict.primary.against.digest, verdict.primary.rows) == (V2, 15)
    assert (verdict.general.against, verdict.general.rows) == (None, 12)
    assert verdict.primary.data != verdict.general.data

    files.evaluation["scorers"]["f1"] = {"kind": "rouge-l"}
    evaluate(files, gateway, "--record", "--bucket", BUCKET)
    first, second = read_verdicts(catalog, "faq", "v3")
    assert first.scorers != second.scorers
    assert first.primary.data == second.primary.data


def test_the_general_set_blocks_too(files: Files, gateway: FakeGateway) -> None:
    files.rows(12)
    files.rows(5, "general.jsonl")
    files.evaluation |= {"general": "general.jsonl", "margin": 0.2}
    assert evaluate(files, gateway) == 4


def test_an_override_is_recorded_with_its_reason_and_who(files: Files, gateway: FakeGateway, catalog: Bucket) -> None:
    record = ["--record", "--bucket", BUCKET]
    assert evaluate(files, gateway, *record, "--override", "v2 leaks names") == 0
    [verdict] = read_verdicts(catalog, "faq", "v3")
    assert verdict.result is Result.INCONCLUSIVE
    assert verdict.override
    assert verdict.override.reason == "v2 leaks names"
    assert verdict.override.by.startswith("arn:aws:")
    assert evaluate(files, gateway, "--override", "why not") == 2, "nothing would be recorded"


def test_a_run_that_stopped_goes_on_where_it_was(files: Files, gateway: FakeGateway) -> None:
    gateway.behaviour = lambda model, question: 404 if model == "faq@v3" else None
    assert evaluate(files, gateway, "--concurrency", "1") == 1
    gateway.asked.clear()
    gateway.behaviour = lambda model, question: None
    assert evaluate(files, gateway) == 4
    asked = Counter(body["model"] for body in gateway.asked)
    assert (asked[BASE], asked["faq@v2"]) == (4, 4), "one row of each had its answer"
    assert asked["faq@v3"] >= 10, "what was refused was not kept"
    gateway.asked.clear()
    assert evaluate(files, gateway) == 4
    assert gateway.asked == []


def test_another_versions_answer_is_not_taken_for_its_own(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.served = {"faq@v3": BASE}
    assert evaluate(files, gateway) == 1
    assert f"{BASE} answered in the place of faq@v3" in capsys.readouterr().err
    gateway.served = {}
    assert evaluate(files, gateway) == 4, "what it said was not kept"


def test_republished_bytes_are_asked_anew(files: Files, gateway: FakeGateway) -> None:
    evaluate(files, gateway)
    gateway.asked.clear()
    files.stack("dev", [files.entry("v2", V2), files.entry("v3", "sha256:" + "4" * 64) | {"canaryPercent": 1}])
    evaluate(files, gateway)
    assert Counter(body["model"] for body in gateway.asked) == {"faq@v3": 10}


def test_samples_of_a_row_are_one_row(files: Files, gateway: FakeGateway) -> None:
    files.evaluation["sampling"] = {"temperature": 0.7, "samples": 2}
    evaluate(files, gateway)
    assert len({body["seed"] for body in gateway.asked}) == 2
    assert files.report["verdict"]["primary"]["rows"] == 5


def test_the_report_tells_categories_failures_noise_latency_and_every_row(files: Files, gateway: FakeGateway) -> None:
    calls: Counter[str] = Counter()

    def behaviour(model: str, question: str) -> str | int | None:
        calls[f"{model} {question}"] += 1
        if model == "faq@v3" and question == "question 1":
            return "answer 1" if calls["faq@v3 question 1"] == 1 else " "
        if model == "faq@v2" and question == "question 2":
            return "<script>alert(1)</script>"
        return 400 if (model, question) == (BASE, "question 3") else None

    gateway.behaviour = behaviour
    evaluate(files, gateway, "--concurrency", "1")
    found = files.report
    assert found["noise"]["changed_answers"] == pytest.approx(1 / 5)
    assert found["noise"]["changed_scores"] == pytest.approx(1 / 5)
    [part] = found["sets"]
    assert part["subjects"]["candidate again"]["failures"]["whitespace"] == 1
    assert part["subjects"]["base"]["failures"]["error"] == 1
    assert part["subjects"]["production"]["categories"]["factual"] == {
        "rows": 2,
        "scores": {"exact": 1, "f1": 1},
    }
    assert part["subjects"]["base"]["tokens"] == {"prompt": 28, "completion": 12}
    assert part["subjects"]["candidate"]["latencySeconds"]["median"] > 0
    assert len(part["rows"]) == 5

    page = (files.results / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)=|https?://|@import|url\(", page), "it needs nothing from elsewhere"
    assert "<del>&lt;script&gt;alert(1)&lt;/script&gt;</del>" in page


def test_a_judge_sees_each_pair_twice_and_decides_only_with_labels(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    files.evaluation["judge"] = {"model": "judge-model"}
    gateway.behaviour = lambda model, question: "wrong" if model == "faq@v2" else None

    def judge(prompt: str) -> str:
        a, b = (re.findall(rf"\[Answer {side}\]\n(.*)\n", prompt)[0] for side in "AB")
        return "[[TIE]]" if a == b else "[[B]]" if a == "wrong" else "[[A]]"

    gateway.judge = judge
    assert evaluate(files, gateway) == 0
    assert sum(body["model"] == "judge-model" for body in gateway.asked) == 10
    found = files.report
    assert (found["judge"]["turnedByOrder"], found["judge"]["unparsable"], found["judge"]["agreement"]) == (0, 0, None)
    assert found["sets"][0]["subjects"]["candidate"]["scores"]["judge"] == 1

    files.evaluation["primaryScore"] = "judge"
    assert evaluate(files, gateway) == 1
    assert "a judge never decides alone" in capsys.readouterr().err

    files.evaluation["judge"]["labels"] = "labels.jsonl"
    labels = [{"question": f"q{n}", "a": "good", "b": "wrong", "preferred": "ab"[n % 2]} for n in range(30)]
    (files.folder / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    assert evaluate(files, gateway) == 1
    assert "agrees with people by a kappa of 0.00 on 30 pairs" in capsys.readouterr().err
    for number, label in enumerate(labels):
        label.update({"a": "good", "b": "wrong"} if number % 2 == 0 else {"a": "wrong", "b": "good"})
    (files.folder / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    assert evaluate(files, gateway) == 0
    assert files.report["judge"]["agreement"]["kappa"] == 1


def test_an_outside_judge_has_a_key_of_its_own_and_is_told_nothing_of_vllm(
    files: Files, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files.evaluation["judge"] = {"model": "judge-model", "url": gateway.url}
    gateway.behaviour = lambda model, question: "wrong" if model == "faq@v2" else None
    assert evaluate(files, gateway) == 2
    assert "set JUDGE_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("JUDGE_API_KEY", "theirs")
    evaluate(files, gateway)
    [*_, last] = (body for body in gateway.asked if body["model"] == "judge-model")
    assert last.keys() == {"model", "messages", "temperature", "max_tokens", "path", "key"}
    assert last["key"] == "Bearer theirs"


def test_a_whole_model_is_compared_with_the_one_that_another_stack_serves(
    files: Files, gateway: FakeGateway, catalog: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.rows(15)
    files.stack("dev", [], baseModelMirror={"version": "v2", "digest": V2, "sizeBytes": 1})
    record, whole = ["--record", "--bucket", BUCKET], f"{BASE}@v2"
    assert evaluate(files, gateway, *record, candidate=whole) == 2, "nobody said where production is"

    monkeypatch.setenv("PRODUCTION_API_KEY", "theirs")
    with serving(FakeGateway()) as elsewhere:
        elsewhere.behaviour = right_until(BASE, 6)
        url = ["--production-url", elsewhere.url]
        assert evaluate(files, gateway, *record, *url, candidate=whole) == 0
        assert (len(gateway.asked), len(elsewhere.asked)) == (30, 15)
        assert {body["key"] for body in elsewhere.asked} == {"Bearer theirs"}
        [verdict] = read_verdicts(catalog, BASE, "v2")
        assert (verdict.candidate.digest, verdict.base.mirror, verdict.primary.against) == (V2, None, None)
        assert (verdict.primary.candidate_score, verdict.primary.score) == (1, 0.4)
        assert evaluate(files, gateway, *url, candidate=f"{BASE}@v3") == 1, "this is not what dev serves"


def test_a_dry_run_checks_and_asks_nothing(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    files.rows(30, document="manual.pdf")
    files.rows(200, "general.jsonl", reference="北京是中国的首都")
    files.evaluation["general"] = "general.jsonl"
    assert evaluate(files, gateway, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "30 rows from 1 documents" in told
    assert "200 rows from 200 documents or questions show a difference of 3.9 to 5.6 points" in told
    assert "their power multiplies (0.8 x 0.8 = 0.64)" in told
    assert "f1: Chinese does not separate words" in told
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"primaryScore": "bleu"}, "primaryScore: is not one of exact, f1"),
        ({"margins": 0.02}, "margins: is not a known key"),
        ({"scorers": {"exact": {"kind": "bleu"}}}, "scorers"),
        ({"rows": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
    ],
)
def test_what_is_wrong_with_the_file_is_told_before_anything_is_asked(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    files.evaluation |= changes
    assert evaluate(files, gateway) == 1
    assert told in capsys.readouterr().err
    assert gateway.asked == []


def followed(files: Files, gateway: FakeGateway, *entries: dict[str, Any], name: str = "faq") -> int:
    """In the cluster: with the document that is followed there, instead of stack files."""
    (files.folder / "faq.yaml").write_text(yaml.safe_dump(files.evaluation))
    state = {"base": {"name": BASE}, "bucket": "adapters", "adapters": entries}
    (files.folder / "desired.json").write_text(json.dumps(state))
    where = ["--desired-state", str(files.folder / "desired.json"), "--base-revision", "main", "--url", gateway.url]
    words = ["--candidate", name, "--key", "k", "--record", "--bucket", BUCKET, "--no-gate"]
    return main(["evaluate", str(files.folder / "faq.yaml"), *where, *words])


def test_in_the_cluster_a_canary_is_compared_with_its_stable_version(
    files: Files, gateway: FakeGateway, catalog: Bucket
) -> None:
    gateway.behaviour = right_until("faq@v3", 0)
    stable, canary = files.entry("v2", V2), files.entry("v3", V3) | {"canaryPercent": 1}
    assert followed(files, gateway, canary, stable) == 0, "the verdict is in the bucket, and no reason to try again"
    (verdict,) = read_verdicts(catalog, "faq", "v3")
    assert (verdict.result, verdict.candidate.digest, verdict.base.revision) == (Result.FAIL, V3, "main")
    assert verdict.primary.against
    assert verdict.primary.against.digest == V2


def test_in_the_cluster_a_version_alone_is_compared_with_the_base(
    files: Files, gateway: FakeGateway, catalog: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.behaviour = right_until(BASE, 0)
    assert followed(files, gateway, files.entry("v2", V2)) == 0
    (verdict,) = read_verdicts(catalog, "faq", "v2")
    assert (verdict.candidate.digest, verdict.primary.against) == (V2, None)
    assert followed(files, gateway, files.entry("v2", V2), name="legal") == 1
    assert "declares no legal" in capsys.readouterr().err


def test_what_is_in_production_already_or_nowhere_is_not_evaluated(
    files: Files, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    files.stack("prod", [files.entry("v3", V3)])
    assert evaluate(files, gateway) == 1
    assert "faq@v3 is in production" in capsys.readouterr().err
    files.stack("dev", [])
    assert evaluate(files, gateway) == 1
    assert "declares no faq@v3" in capsys.readouterr().err
