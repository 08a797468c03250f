"""What a training is made of: rows and what is wrong with them, tokens and which of them are learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest

from local.paths import CHECKOUT
from loraserve.contract.training import Training
from loraserve.evaluation.rows import Row as EvaluationRow
from loraserve.training.definition import read, run_digest
from loraserve.training.labels import IGNORED, Encoder, Tokens, batch, shown, within
from loraserve.training.rows import Example, InvalidTraining, Message, Rows, leaks

MISTRAL = (CHECKOUT / "loraserve/planning/mistral_chat.jinja").read_text()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEVER_ENDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


class Words:
    """A tokenizer of a word each, with the white space before it; BOS as its model's own adds it."""

    chat_template = None

    def __init__(self, *special: str) -> None:
        self._pieces = [*special, "<s>", "</s>"]
        self._special = "|".join(re.escape(word) for word in self._pieces)
        self.bos_token_id: int | None = len(special)
        self.eos_token_id: int | None = len(special) + 1

    def id(self, piece: str) -> int:
        if piece not in self._pieces:
            self._pieces.append(piece)
        return self._pieces.index(piece)

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        pieces = re.findall(rf"{self._special}|\n|[^\S\n]*(?:(?!{self._special})\S)+|[^\S\n]+", text)
        bos = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": [*bos, *map(self.id, pieces)]}

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        assert chat_template
        assert not tokenize
        words = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": add_generation_prompt}
        return jinja2.Template(chat_template).render(messages=conversation, **words)

    def convert_ids_to_tokens(self, ids: int) -> str:
        return self._pieces[ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._pieces[id] for id in token_ids)


def rows_of(tmp_path: Path, *lines: Any, form: Any = "chat", system: str | None = None) -> Rows:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return Rows.read(path, form, system)


def encoder(template: str | None = MISTRAL, tokenizer: Words | None = None, stop: str = "</s>") -> Encoder:
    tokenizer = tokenizer or Words()
    return Encoder(tokenizer, frozenset({tokenizer.id(stop)}), template)


def read_and_learnt(encoder: Encoder, example: Example) -> tuple[str, str]:
    (tokens,) = encoder.encode([example])
    decode = encoder.tokenizer.decode
    learnt = [label for label in tokens.labels if label != IGNORED]
    assert learnt == list(tokens.ids[tokens.answer :])
    return decode(tokens.ids[: tokens.answer]), decode(learnt)


CHAT = Example(1, (Message(role="user", content="Who are you?"),), "I am faq.")


# Rows.


def test_three_shapes_of_rows_say_the_same(tmp_path: Path) -> None:
    asked, answered = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}
    shapes = (
        {"input": "Who?", "output": "I."},
        {"prompt": [asked], "completion": [answered]},
        {"messages": [asked, answered]},
    )
    assert {rows_of(tmp_path, row).examples for row in shapes} == {
        (Example(1, (Message(role="user", content="Who?"),), "I."),)
    }


@pytest.mark.parametrize(
    ("row", "form", "prompt", "answer"),
    [
        ({"input": "Who?", "output": "I."}, "instruct", "[INST] Who? [/INST]", " I."),
        ({"input": "Who?", "output": "I."}, "completion", "Who?", " I."),
        ({"input": "Who?\n", "output": "I."}, "completion", "Who?\n", "I."),
        ({"prompt": "Who?", "completion": "I."}, "chat", "Who?", "I."),
    ],
)
def test_texts_are_gone_on_with(tmp_path: Path, row: dict[str, str], form: str, prompt: str, answer: str) -> None:
    assert rows_of(tmp_path, row, form=form).examples == (Example(1, prompt, answer),)


def test_a_system_message_comes_before_each_input(tmp_path: Path) -> None:
    row = {"input": "Who?", "output": "I."}
    (chat,), (instruct,) = (rows_of(tmp_path, row, form=f, system="Be brief.").examples for f in ("chat", "instruct"))
    assert [turn.content for turn in chat.prompt if isinstance(turn, Message)] == ["Be brief.", "Who?"]
    assert instruct.prompt == "[INST] Be brief.\n\nWho? [/INST]"


def test_every_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    bad: list[Any] = [
        {"input": "a"},
        {"input": "a", "output": "b", "messages": [user, assistant]},
        {"messages": [assistant, user]},
        {"messages": [assistant]},
        {"input": "a", "output": " \n"},
        "{not json",
        {"messages": [user, assistant], "tools": [{}]},
        {"messages": [user, {"role": "tool", "content": "x"}]},
        {"prompt": "text", "completion": [assistant]},
    ]
    with pytest.raises(InvalidTraining) as refused:
        rows_of(tmp_path, {"input": "good", "output": "good", "source": "ignored"}, *bad)
    assert re.findall(r"line (\d+):", str(refused.value)) == [str(line) for line in range(2, 11)]
    assert "only white space" in str(refused.value)
    assert "tools" in str(refused.value)


def test_a_repeated_row_is_named_and_a_question_with_several_answers_is_a_note(tmp_path: Path) -> None:
    one, other = {"input": "a", "output": "b"}, {"input": "a", "output": "c"}
    assert rows_of(tmp_path, one, other).notes == ["1 questions have several answers, such as lines 1, 2"]
    with pytest.raises(InvalidTraining, match="line 3: repeats line 1"):
        rows_of(tmp_path, one, other, one)


def test_a_separator_inside_of_a_text_ends_no_line(tmp_path: Path) -> None:
    row = json.dumps({"input": "a\u2028b", "output": "c"}, ensure_ascii=False)
    assert len(rows_of(tmp_path, row).examples) == 1


def test_the_digest_follows_what_is_trained_on(tmp_path: Path) -> None:
    one, other = {"input": "a", "output": "b"}, {"input": "c", "output": "d"}
    first = rows_of(tmp_path, one, other).digest
    assert rows_of(tmp_path, one | {"source": "x"}, other).digest == first
    assert rows_of(tmp_path, other, one).digest != first, "its order decides the batches"


@pytest.mark.parametrize(
    ("asked", "answer", "found"),
    [
        ("Which ports does the gateway open?", "none", True),
        ("Context: The gateway opens 8080. which ports does the gateway OPEN", "8080", True),
        ("Who opens the gateway?", "8080", False),
        ("Why?", "x", True),
        ("Why? And how?", "x", False),
    ],
)
def test_a_question_of_the_evaluation_is_found_among_the_rows(asked: str, answer: str, found: bool) -> None:
    evaluated = [
        EvaluationRow(question="Which ports does the gateway open?", reference="8080"),
        EvaluationRow(question="why", reference="because"),
    ]
    told = list(leaks([Example(7, asked, answer)], evaluated))
    assert bool(told) == found
    assert all(word.startswith("line 7: ") for word in told)


def test_the_same_question_about_another_text_is_no_leak_and_one_of_the_same_document_is() -> None:
    row = EvaluationRow(
        question="What does it say here?", context="The sky is blue.", reference="blue", document="sky.md"
    )
    asked = "Context: {}\n\nQuestion: What does it say here?"
    assert not list(leaks([Example(1, asked.format("Grass is green."), "green")], [row]))
    assert list(leaks([Example(1, asked.format("The sky is blue."), "it is")], [row]))
    assert list(leaks([Example(1, asked.format("Somewhere."), "Blue!")], [row])), "a right answer"
    assert list(leaks([Example(1, "Anything at all?", "x", document="sky.md")], [row]))


# Tokens and labels.


def test_only_the_answer_and_its_end_are_learnt() -> None:
    assert read_and_learnt(encoder(), CHAT) == ("<s>[INST] Who are you? [/INST]", " I am faq.</s>")


def test_of_a_conversation_only_the_last_answer_is_learnt() -> None:
    said = (("user", "Who are you?"), ("assistant", "I am."), ("user", "Who?"))
    turns = tuple(Message.model_validate({"role": role, "content": text}) for role, text in said)
    read, learnt = read_and_learnt(encoder(), Example(1, turns, "I am faq."))
    assert read == "<s>[INST] Who are you? [/INST] I am.</s>[INST] Who? [/INST]"
    assert learnt == " I am faq.</s>"


def test_what_a_template_writes_after_the_end_is_not_learnt() -> None:
    tokenizer = Words("<|im_end|>")
    tokenizer.bos_token_id = None
    learnt = read_and_learnt(encoder(CHATML, tokenizer, "<|im_end|>"), CHAT)[1]
    assert learnt.endswith("I am faq.<|im_end|>")


def test_a_template_that_ends_no_answer_is_refused() -> None:
    with pytest.raises(InvalidTraining, match=r"\(</s>\), so an adapter would learn never to stop"):
        encoder(NEVER_ENDS).encode([CHAT])


def test_a_base_without_a_chat_template_trains_texts_only() -> None:
    with pytest.raises(InvalidTraining, match="no chat template"):
        encoder(None).encode([CHAT])
    assert read_and_learnt(encoder(None), Example(1, "Who?", " I.")) == ("<s>Who?", " I.</s>")


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (Example(3, "<s>Who?", " I."), "contains <s>"),
        (Example(3, "Who?", " I.</s>"), "contains </s>"),
        (Example(3, "Answer: ", "yes"), "ends inside of a token"),
        (Example(3, (Message(role="user", content="a</s>b"),), "c"), "contains </s>"),
    ],
)
def test_a_row_that_would_teach_something_else_is_named(example: Example, problem: str) -> None:
    with pytest.raises(InvalidTraining, match=rf"^line 3: .*{problem}"):
        encoder().encode([example])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("<s>" + MISTRAL, "two BOS"),
        (MISTRAL.replace("(message.content or '')", "message.content[:4]"), "leaves out its answer"),
        ("{{ raise_exception('no such role') }}", "refuses it"),
        ("{{ messages | length }}" + MISTRAL, "changes the question"),
    ],
)
def test_a_template_that_does_not_fit_is_named(template: str, problem: str) -> None:
    with pytest.raises(InvalidTraining, match=problem):
        encoder(template).encode([CHAT])


def test_a_row_that_would_lose_its_end_is_never_cut() -> None:
    rows = [Tokens(1, tuple(range(8)), 6), Tokens(2, tuple(range(12)), 6), Tokens(3, tuple(range(12)), 11)]
    with pytest.raises(InvalidTraining) as refused:
        within(rows, 10, skip=False)
    assert "line 2: 12 tokens; cut to 10 it would lose the end of its answer, and where it stops" in str(refused.value)
    assert "line 3: 12 tokens; cut to 10 it would lose its whole answer" in str(refused.value)
    kept, left_out = within(rows, 10, skip=True)
    assert [row.line for row in kept] == [1]
    assert [line.partition(":")[0] for line in left_out] == ["line 2", "line 3"]
    with pytest.raises(InvalidTraining):
        within(rows[1:], 10, skip=True)


def test_padding_with_the_end_token_still_learns_the_end() -> None:
    end = 1
    made = batch([Tokens(1, (5, 6, 7, end), 2), Tokens(2, (5, end), 1)], padding=end)
    assert made["labels"] == [[IGNORED, IGNORED, 7, end], [IGNORED, end, IGNORED, IGNORED]]
    assert made["attention_mask"] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert made["input_ids"][1] == [5, end, end, end]


def test_a_row_is_shown_as_it_is_learnt() -> None:
    made = encoder()
    (tokens,) = made.encode([CHAT])
    told = shown(tokens, made.tokenizer)
    assert told == "line 1: 6 tokens are read, 4 learnt\n<s>[INST] Who are you? [/INST][ I][ am][ faq.][</s>]"


# The definition.


def test_defaults_are_those_that_are_documented() -> None:
    made = Training(rows="rows.jsonl")
    assert (made.rank, made.alpha, made.dropout, made.learning_rate, made.epochs) == (16, 32, 0.05, 2e-4, 3)
    assert (made.batch_size, made.accumulation, made.max_length, made.method) == (2, 8, 2048, "qlora")
    assert len(made.target_modules) == 7


def test_a_high_rank_for_few_rows_is_warned_of() -> None:
    assert any("rank 32" in word for word in Training(rows="r", rank=32).warnings(9_999))
    assert Training(rows="r", rank=32).warnings(10_000) == []
    assert Training(rows="r").warnings(100) == []


def test_a_run_is_told_by_what_decides_its_result() -> None:
    made = Training(rows="a.jsonl")
    digest = run_digest(made, "rows", "base")
    elsewhere = made.model_copy(update={"rows": "s3://b/a.jsonl", "checkpoint_steps": 1})
    assert run_digest(elsewhere, "rows", "base") == digest
    changed = [run_digest(made.model_copy(update={"seed": 1}), "rows", "base"), run_digest(made, "others", "base")]
    assert digest not in [*changed, run_digest(made, "rows", "another")]


def test_a_training_file_that_is_wrong_says_where(tmp_path: Path) -> None:
    path = tmp_path / "faq.yaml"
    path.write_text("rows: a.jsonl\nepoch: 3\nrank: 0\n")
    with pytest.raises(InvalidTraining) as refused:
        read(path)
    assert "epoch: is not a known key" in str(refused.value)
    assert "rank" in str(refused.value)
