"""`loraserve questions`: what a model says of documents becomes rows, once it was checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraserve import bulk
from loraserve.evaluation.answers import Answer
from loraserve.evaluation.rows import Rows as EvaluationRows
from loraserve.operator.cli import main
from loraserve.training import questions
from loraserve.training.rows import Rows
from tests.unit.test_evaluate import BASE, FakeGateway, serving

TEXTS = {
    "buckets.md": "A bucket keeps every version for thirty days.\n\nDeleting a bucket takes an owner.",
    "nodes.md": "A node restarts at midnight.\n\nNodes carry two volumes.",
    "keys.md": "Keys are rotated by the operator each quarter.",
    "alerts.md": "Alerts reach the team by telephone.",
}


class Asked(FakeGateway):
    """Makes one question of each paragraph, whose answer is the paragraph; `replies` in its place."""

    def __init__(self) -> None:
        self.replies: list[str] = []
        super().__init__()

    def answer(self, body: dict[str, Any]) -> str | int:
        if self.replies:
            return self.replies.pop()
        text = body["messages"][0]["content"].partition("Text:\n")[2]
        pairs = [{"question": f"What of: {part[:25]}?", "answer": part} for part in text.split("\n\n")]
        return json.dumps({"pairs": pairs})


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(bulk, "_PAUSE_SECONDS", 0.01)
    with serving(Asked()) as fake:
        yield fake


@pytest.fixture
def documents(tmp_path: Path) -> list[str]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in TEXTS]


def run(gateway: Asked, documents: list[str], folder: Path, *more: str) -> int:
    common = ["--model", BASE, "--url", gateway.url, "--key", "k", "--output", str(folder), "--concurrency", "1"]
    return main(["questions", *documents, *common, *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_document_has_rows_on_both_sides_and_both_are_files_that_training_and_evaluation_read(
    gateway: Asked, documents: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(gateway, documents, out) == 0
    trained = {row["document"] for row in lines(out / "train.jsonl")}
    evaluated = {row["document"] for row in lines(out / "eval.jsonl")}
    assert not trained & evaluated
    assert trained | evaluated == set(documents)
    assert all((trained, evaluated))
    assert Rows.read(out / "train.jsonl").examples
    assert EvaluationRows.read(out / "eval.jsonl").rows


def test_the_model_is_asked_below_interactive_traffic_for_json_of_its_shape(
    gateway: Asked, documents: list[str], tmp_path: Path
) -> None:
    run(gateway, documents, tmp_path / "out")
    assert {request["service_tier"] for request in gateway.asked} == {"flex"}
    assert {request["response_format"]["type"] for request in gateway.asked} == {"json_schema"}


def test_a_negative_example_has_the_text_of_another_document_and_says_that_it_lacks_the_answer(
    gateway: Asked, documents: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(gateway, documents, out, "--negative-share", "1") == 0
    rows = lines(out / "train.jsonl")
    asked = {
        row["input"].partition("Question: ")[2]: row["document"] for row in rows if row["output"] != questions.REFUSAL
    }
    refused = [row for row in rows if row["output"] == questions.REFUSAL]
    assert refused
    for row in refused:
        assert row["document"] != asked[row["input"].partition("Question: ")[2]]
    assert Answer(questions.REFUSAL).refuses(None), "as the evaluation counts it"


def test_an_answer_that_is_not_in_the_text_a_repeated_question_and_no_json_are_dropped_and_counted(
    gateway: Asked, documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invented = {"question": "Who founded it?", "answer": "Somebody called Ada Example, in Utopia"}
    twice = {"question": "What happens at midnight?", "answer": "A node restarts"}
    gateway.replies = ["Sure! Here are some questions.", json.dumps({"pairs": [invented, twice, twice]})]
    # Read from the end: the second document gets the second reply.
    chosen = [documents[1], documents[0], documents[2], documents[3]]
    assert run(gateway, chosen, tmp_path / "out", "--negative-share", "0") == 0
    told = capsys.readouterr().err
    assert "1 answers that are not in the text" in told
    assert "1 questions that were asked before" in told
    assert "1 passages whose answer was no JSON of pairs" in told


def test_a_run_that_was_ended_asks_for_no_answer_twice(gateway: Asked, documents: list[str], tmp_path: Path) -> None:
    run(gateway, documents, tmp_path / "out")
    first = (tmp_path / "out" / "train.jsonl").read_text()
    gateway.asked.clear()
    run(gateway, documents, tmp_path / "out")
    assert not gateway.asked
    assert (tmp_path / "out" / "train.jsonl").read_text() == first, "and the seed decides the rest"


def test_one_document_is_refused_before_anything_is_asked(
    gateway: Asked, documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, documents[:1], tmp_path / "out") == 1
    assert "give two or more" in capsys.readouterr().err
    assert not gateway.asked


def test_a_model_that_makes_nothing_of_use_is_told(
    gateway: Asked, documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.replies = ["no"] * len(documents)
    assert run(gateway, documents, tmp_path / "out") == 1
    assert "see what was dropped" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_paragraphs_stay_together_and_a_long_one_is_cut() -> None:
    assert questions.cut("one two\n\nthree four\n\n---\n\nfive six seven", 4) == [
        "one two\n\nthree four",
        "five six seven",
    ]
    assert questions.cut("a b c d e", 2) == ["a b", "c d", "e"]
