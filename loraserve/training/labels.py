"""From examples to what a model is trained on: token ids, of which only the answer's and its end are learnt.

Read as vLLM reads a request: a conversation by the chat template without further special tokens, a text with the tokenizer's
own, such as BOS. Every answer ends with a token that vLLM stops at, and nothing is ever cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loraserve.training.rows import Example, InvalidTraining, as_messages

IGNORED = -100
"""The label of what is not learnt, to torch's cross entropy."""
SHOWN_PROBLEMS = 10


class Tokenizer(Protocol):
    """What of transformers' tokenizers is used."""

    bos_token_id: int | None
    eos_token_id: int | None

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Any: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...

    def decode(self, token_ids: Sequence[int]) -> Any: ...


class _Unfit(Exception):
    """Why an example cannot be trained on."""


@dataclass(frozen=True)
class Tokens:
    """One row: its ids, of which those from `answer` on are learnt."""

    line: int
    ids: tuple[int, ...]
    answer: int

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.answer + list(self.ids[self.answer :])


@dataclass(frozen=True)
class Encoder:
    """`stops` are the ids that vLLM ends an answer at: the tokenizer's EOS, and those of the generation_config.json."""

    tokenizer: Tokenizer
    stops: frozenset[int]
    chat_template: str | None = None
    """In the place of the tokenizer's own."""

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """Raises InvalidTraining with the line of each example that would teach something else than its answer."""
        if not (self.chat_template or self.tokenizer.chat_template) and any(
            isinstance(e.prompt, tuple) for e in examples
        ):
            raise InvalidTraining(
                "the base model has no chat template, so it answers no conversation: set the stack's chatTemplateFile, or train in the "
                "form `instruct` or `completion`"
            )
        found, problems = [], []
        for example in examples:
            try:
                found.append(self._encode(example))
            except _Unfit as why:
                problems.append((example.line, str(why)))
        if problems:
            raise InvalidTraining(_told(problems))
        return found

    def _encode(self, example: Example) -> Tokens:
        self._refuse_special(example)
        before, whole = self._conversation(example) if isinstance(example.prompt, tuple) else self._text(example)
        if whole[: len(before)] != before:
            joined = "let the prompt end without white space, and the answer begin with it"
            by_template = "the chat template joins it and the answer, so give both as texts, `prompt` and `completion`"
            raise _Unfit(
                "its prompt ends inside of a token, so the server would read another one: "
                + (by_template if isinstance(example.prompt, tuple) else joined)
            )
        bos = self.tokenizer.bos_token_id
        if bos is not None and whole[:2] == [bos, bos]:
            raise _Unfit("it would begin with two BOS tokens: the chat template and the tokenizer both add one")
        return Tokens(example.line, tuple(whole), len(before))

    def _refuse_special(self, example: Example) -> None:
        ids = {
            *self.stops,
            *(id for id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if id is not None),
        }
        written = {str(self.tokenizer.convert_ids_to_tokens(id)) for id in ids}
        for text in example.texts:
            if found := next((word for word in sorted(written) if word in text), None):
                raise _Unfit(
                    f"contains {found}, which is read as the token of that name and is added where it belongs: remove it"
                )

    def _text(self, example: Example) -> tuple[list[int], list[int]]:
        stop = self.tokenizer.eos_token_id
        if stop is None:
            raise InvalidTraining(
                "the tokenizer has no EOS token, so an answer could not end: train in the form `chat`"
            )
        before, whole = (
            _without_end(self._ids(text, special=True), stop)
            for text in (example.prompt, f"{example.prompt}{example.answer}")
        )
        return before, [*whole, stop]

    def _conversation(self, example: Example) -> tuple[list[int], list[int]]:
        turns = as_messages(example.prompt)
        before = self._rendered(turns, answered=False)
        whole = self._rendered([*turns, {"role": "assistant", "content": example.answer}], answered=True)
        if not whole.startswith(before):
            raise _Unfit(
                "the chat template changes the question once it is answered: give `prompt` and `completion` as texts"
            )
        if example.answer.strip() not in whole[len(before) :]:
            raise _Unfit("the chat template leaves out its answer, or a part of it")
        ids, start = self._ids(whole, special=False), self._ids(before, special=False)
        ends = [at for at, id in enumerate(ids) if id in self.stops and at >= len(start)]
        if not ends:
            names = ", ".join(sorted(str(self.tokenizer.convert_ids_to_tokens(id)) for id in self.stops))
            raise InvalidTraining(
                f"the chat template ends an answer without a token that the server stops at ({names}), so an adapter would learn "
                "never to stop: give a template that does, in the stack's chatTemplateFile"
            )
        return start, ids[: ends[-1] + 1]

    def _rendered(self, turns: list[dict[str, str]], *, answered: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self.chat_template, tokenize=False, add_generation_prompt=not answered
                )
            )
        except Exception as error:  # jinja2's, or whatever a template raises about its roles
            raise _Unfit(f"the chat template refuses it ({str(error).splitlines()[0]:.200})") from None

    def _ids(self, text: Any, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])


def within(tokens: Sequence[Tokens], longest: int, skip: bool) -> tuple[list[Tokens], list[str]]:
    """The rows of at most `longest` tokens, and a word on each other. Raises InvalidTraining unless they may be skipped."""
    long = [(row.line, f"{len(row.ids):,} tokens; cut to {longest:,} it would lose {_lost(row, longest)}") for row in tokens
            if len(row.ids) > longest]  # fmt: skip
    if long and (not skip or len(long) == len(tokens)):
        raise InvalidTraining(f"{_told(long)}\nshorten them, raise maxLength, or leave them out with skipLong: true")
    return [row for row in tokens if len(row.ids) <= longest], [f"line {line}: left out, {why}" for line, why in long]


def shown(tokens: Tokens, tokenizer: Tokenizer) -> str:
    """A row as the model reads it, for people: what is learnt stands in brackets, token by token."""
    read = str(tokenizer.decode(tokens.ids[: tokens.answer]))
    learnt = "".join(f"[{tokenizer.decode([id])}]" for id in tokens.ids[tokens.answer :])
    return (
        f"line {tokens.line}: {tokens.answer} tokens are read, {len(tokens.ids) - tokens.answer} learnt\n{read}{learnt}"
    )


def batch(rows: Sequence[Tokens], padding: int) -> dict[str, list[list[int]]]:
    """Equally long rows of input_ids, attention_mask and labels. What is padded is known by its place, not by its id."""
    longest = max(len(row.ids) for row in rows)
    gaps = [longest - len(row.ids) for row in rows]
    return {
        "input_ids": [[*row.ids, *[padding] * gap] for row, gap in zip(rows, gaps, strict=True)],
        "attention_mask": [[1] * len(row.ids) + [0] * gap for row, gap in zip(rows, gaps, strict=True)],
        "labels": [row.labels + [IGNORED] * gap for row, gap in zip(rows, gaps, strict=True)],
    }


def _lost(row: Tokens, longest: int) -> str:
    return "its whole answer" if row.answer >= longest else "the end of its answer, and where it stops"


def _without_end(ids: list[int], stop: int) -> list[int]:
    return ids[:-1] if ids[-1:] == [stop] else ids


def _told(problems: Collection[tuple[int, str]]) -> str:
    lines = [f"line {line}: {why}" for line, why in list(problems)[:SHOWN_PROBLEMS]]
    more = len(problems) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])
