"""Rows, prompts, scores and failures: against what is published, and what is refused by its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from loraserve.evaluation.answers import Answer
from loraserve.evaluation.definition import Prompt, Sampling
from loraserve.evaluation.judge import Agreement, Judge, Labelled, Opinion, Pair, UnfitJudge
from loraserve.evaluation.rows import InvalidEvaluation, Row, Rows
from loraserve.evaluation.scorers import AnyScorer, JsonSchema
from loraserve.evaluation.words import normalised, unspaced_languages, words

_SCORERS: TypeAdapter[AnyScorer] = TypeAdapter(AnyScorer)


def score(kind: str, answer: str, *references: str, **fields: Any) -> float:
    return _SCORERS.validate_python({"kind": kind, **fields}).score(answer, references)


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


@pytest.mark.parametrize(
    ("answer", "reference", "rouge"),
    [
        ("police kill the gunman", "police killed the gunman", 0.75),  # Lin 2004
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("testing two", "testing one two", 0.8),  # rouge-score's own test
        ("", "", 1.0),
        ("", "a word", 0.0),
    ],
)
def test_rouge_l_is_the_published_one(answer: str, reference: str, rouge: float) -> None:
    assert score("rouge-l", answer, reference) == pytest.approx(rouge)


def test_words_of_other_languages_stay_whole() -> None:
    assert words("Größe ändern, max_loras, наука!") == ["größe", "ändern", "max", "loras", "наука"]
    assert score("rouge-l", "Die Größe ändern", "Größe ändern") == pytest.approx(0.8)


def test_languages_without_spaces_are_named() -> None:
    assert unspaced_languages(["Größe", "наука", "한국어 단어"]) == []
    assert unspaced_languages(["北京是中国的首都", "ภาษาไทย", "ひらがな"]) == ["Chinese", "Japanese", "Thai"]


def test_squad_normalises_case_then_punctuation_then_articles_then_spaces() -> None:
    assert normalised("The  Cat's (an) answer: A-1!") == "cats answer a1"
    assert score("normalised-match", "The Eiffel Tower.", "eiffel tower") == 1
    assert score("normalised-match", "Eiffel", "eiffel tower", "EIFFEL!") == 1
    assert score("normalised-match", "Eiffel", "eiffel tower") == 0


def test_token_f1_is_squads() -> None:
    # Two of three words given are right, two of four are found.
    assert score("token-f1", "the red big car", "a big red fast train") == pytest.approx(2 * 2 / (3 + 4))
    assert score("token-f1", "x x", "x") == pytest.approx(2 / 3)
    assert score("token-f1", "the", "a") == 1, "both are empty once they are normalised"


def test_a_pattern_may_hold_the_reference() -> None:
    assert score("regex", "It costs $1.50 a day", "$1.50", pattern=r"costs {reference}\b") == 1
    assert score("regex", "It costs $1x50 a day", "$1.50", pattern=r"costs {reference}\b") == 0
    with pytest.raises(ValueError, match="no regular expression"):
        score("regex", "", "", pattern="(")


def test_json_is_judged_by_its_schema() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert score("json-schema", '{"a": 1}', "", schema=schema) == 1
    assert score("json-schema", '```json\n{"a": 1}\n```', "", schema=schema) == 1
    assert score("json-schema", '```json\n{\n  "a": 1\n}\n```', "", schema=schema) == 1
    assert score("json-schema", '{"a": "1"}', "", schema=schema) == 0
    assert score("json-schema", "no json", "", schema=schema) == 0
    with pytest.raises(ValueError, match="no JSON schema"):
        score("json-schema", "", "", schema={"type": "objct"})


def test_every_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    good = {"question": "q", "reference": "r"}
    lines = ["{", {"question": "q2"}, "", good | {"answer": "x"}, good | {"reference": []}]
    with pytest.raises(InvalidEvaluation) as refused:
        Rows.read(written(tmp_path, *lines))
    told = str(refused.value)
    for part in (
        "line 1: ",
        "line 2: reference: is missing",
        "line 4: answer: is not a known key",
        "line 5: reference",
    ):
        assert part in told.replace("document: reference", "reference")
    with pytest.raises(InvalidEvaluation, match="line 3: repeats line 1"):
        Rows.read(written(tmp_path, good, good | {"context": "c"}, good | {"category": "other"}))
    with pytest.raises(InvalidEvaluation, match="it has no rows"):
        Rows.read(written(tmp_path))


def test_the_datas_digest_is_of_what_the_rows_say(tmp_path: Path) -> None:
    one, other = {"question": "q1", "reference": "r"}, {"reference": "r", "question": "q2"}
    digest = Rows.read(written(tmp_path, one, other)).digest
    assert (
        Rows.read(written(tmp_path, other, "", json.dumps(one, indent=None, separators=(" ,", ":")))).digest == digest
    )
    assert Rows.read(written(tmp_path, one | {"reference": "R"}, other)).digest != digest


def test_rows_of_one_document_or_one_context_are_one_cluster() -> None:
    rows = [
        Row(question="1", reference="r", context="c"),
        Row(question="2", reference="r", context="c"),
        Row(question="3", reference="r", document="d"),
        Row(question="4", reference="r", document="d", context="c"),
        Row(question="5", reference="r"),
        Row(question="6", reference="r"),
    ]
    assert len({row.cluster for row in rows}) == 4


def test_a_schema_without_the_package_that_judges_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ValidationError, match=r"pip install 'loraserve\[evaluate\]'"):
        JsonSchema.model_validate({"kind": "json-schema", "schema": {"type": "object"}})


ROW = Row(question="What is {context}?", context="It is S3.", reference="S3")


@pytest.mark.parametrize(
    ("prompt", "url", "body"),
    [
        (
            {"form": "chat", "system": "Be brief."},
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Context:\nIt is S3.\n\nQuestion: What is {context}?"},
                ]
            },
        ),
        (
            {"form": "instruct"},
            "/v1/completions",
            {"prompt": "[INST] Context:\nIt is S3.\n\nQuestion: What is {context}? [/INST]"},
        ),
        (
            {"form": "completion", "template": "{context} {question} ->"},
            "/v1/completions",
            {"prompt": "It is S3. What is {context}? ->"},
        ),
    ],
)
def test_a_row_is_asked_in_the_form_the_adapter_was_trained_on(
    prompt: dict[str, Any], url: str, body: dict[str, Any]
) -> None:
    assert Prompt(**prompt).request(ROW) == (url, body)


@pytest.mark.parametrize(
    ("form", "asked"),
    [("chat", "Why?"), ("instruct", "[INST] Why? [/INST]"), ("completion", "Question: Why?\nAnswer:")],
)
def test_a_question_without_context_is_asked_as_callers_ask_it(form: Any, asked: str) -> None:
    """One that answers `Why?` need not know what follows `Question:`."""
    _, body = Prompt(form=form).request(Row(question="Why?", reference="so"))
    assert asked in (body.get("prompt"), body.get("messages", [{}])[-1].get("content"))


def test_a_second_bos_and_a_template_without_the_question_are_refused() -> None:
    with pytest.raises(ValueError, match="must not contain <s>"):
        Prompt(form="completion", template="<s>[INST] {question} [/INST]")
    with pytest.raises(ValueError, match=r"no \{question\}"):
        Prompt(template="{context}")


def test_every_sampling_parameter_is_sent() -> None:
    """vLLM takes what is left out from generation_config.json: these are all it looks for there."""
    configured = [
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "max_tokens",
    ]
    assert set(configured) <= Sampling().body(0).keys()
    assert Sampling().body(0)["temperature"] == 0
    assert Sampling(seed=5, temperature=1, samples=3).body(2)["seed"] == 7
    with pytest.raises(ValueError, match="one answer again and again"):
        Sampling(samples=2)


@pytest.mark.parametrize(
    ("answer", "failures"),
    [
        (Answer(""), ["empty"]),
        (Answer(" \n"), ["whitespace"]),
        (Answer("S3.\n\nQuestion: What is EC2?\nAnswer: A machine."), ["invented follow-up question"]),
        (Answer("S3 [INST] and EC2?"), ["invented follow-up question"]),
        (Answer("S3 is an object", "length"), ["truncated"]),
        (Answer("The context does not mention S3."), ["refused with context"]),
        (Answer("I'm unable to answer that."), ["refused with context"]),
        (Answer("", error="too long"), ["error"]),
        (Answer("S3 is object storage; ask questions in the forum."), []),
    ],
)
def test_failures_are_told_apart(answer: Answer, failures: list[str]) -> None:
    assert answer.failures(ROW, None) == failures


def test_where_the_context_lacks_the_answer_only_saying_so_is_right() -> None:
    unanswerable = ROW.model_copy(update={"answerable": False})
    assert Answer("It is S3.").failures(unanswerable, None) == ["answered without context"]
    assert Answer("There is no information about this.").failures(unanswerable, None) == []
    assert Answer("Keine Angabe.").failures(unanswerable, "keine angabe") == []


@pytest.mark.parametrize(
    ("straight", "swapped", "opinion"),
    [
        ("[[A]]", "[[B]]", Opinion("a", 0, False)),
        ("so: [[b]]", "[[A]] it is", Opinion("b", 0, False)),
        ("[[TIE]]", "[[TIE]]", Opinion("tie", 0, False)),
        ("[[A]]", "[[A]]", Opinion("tie", 0, True)),
        ("A is better", "[[B]]", Opinion("tie", 1, False)),
        ("[[A]] or [[B]]", "", Opinion("tie", 2, False)),
    ],
)
def test_a_verdict_that_the_order_turns_is_a_tie_and_one_that_says_nothing_is_counted(
    straight: str, swapped: str, opinion: Opinion
) -> None:
    assert Opinion.of(straight, swapped) == opinion


def test_the_judge_sees_either_answer_first() -> None:
    pair = Pair("q", None, "r", "{b}", "two")
    first, second = pair.prompt(swapped=False), pair.prompt(swapped=True)
    assert first.index("{b}") < first.index("two")
    assert second.index("two") < second.index("{b}")


def test_a_judge_decides_only_where_people_agree_with_it() -> None:
    labels = [Labelled(question="q", a="1", b="2", preferred="a")] * 20
    labels += [Labelled(question="q", a="1", b="2", preferred="b")] * 20
    opinion = {side: Opinion(side, 0, False) for side in ("a", "b")}
    fit = Agreement.of([opinion["a"]] * 18 + [opinion["b"]] * 22, labels)
    assert (fit.raw, fit.kappa) == pytest.approx((0.95, 0.9))
    fit.check(Judge())
    with pytest.raises(UnfitJudge, match=r"kappa of 0\.00 on 40 pairs"):
        Agreement.of([opinion["a"]] * 40, labels).check(Judge())
    with pytest.raises(UnfitJudge, match="20 labels"):
        Agreement.of([opinion["a"]] * 20, labels[:20]).check(Judge())
