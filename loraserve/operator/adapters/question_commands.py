"""`loraserve questions`: rows for a training and its evaluation, from documents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from loraserve.bulk import Journal, ask_all
from loraserve.errors import LoraserveError
from loraserve.operator.access.gateway import gateway, namespace_option, url_option
from loraserve.operator.access.kubectl import context_option
from loraserve.operator.access.terminal import counted_bars, json_option, key_option, plain, print_json, tell
from loraserve.training import questions as made

JOURNAL = "questions.answers.jsonl"
_SHARE = click.FloatRange(0, 1)


class NoQuestions(LoraserveError):
    """The model made none that can be used."""


@click.command()
@click.argument("documents", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", required=True, help="Of this stack, able to hold conversations; it makes the questions.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("questions"),
    show_default=True,
    help="Folder for train.jsonl, eval.jsonl and, until they are written, the answers so far.",
)
@click.option("--per-passage", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--passage-words", type=click.IntRange(20, 4000), default=250, show_default=True)
@click.option("--evaluation-share", type=_SHARE, default=0.25, show_default=True, help="Of the documents.")
@click.option(
    "--negative-share",
    type=_SHARE,
    default=0.2,
    show_default=True,
    help="Questions asked again of a text without the answer.",
)
@click.option("--refusal", default=made.REFUSAL, show_default=True, help="The right answer to those.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 256), default=16, show_default=True, help="Requests at once.")
@key_option
@url_option
@context_option
@namespace_option
@json_option
def questions(
    documents: tuple[Path, ...],
    model: str,
    output: Path,
    per_passage: int,
    passage_words: int,
    evaluation_share: float,
    negative_share: float,
    refusal: str,
    seed: int,
    concurrency: int,
    key: str,
    url: str | None,
    context: str | None,
    namespace: str,
    as_json: bool,
) -> None:
    """Make rows of questions, answers and negative examples from text DOCUMENTS.

    Each document's rows go to training or to the evaluation, whole. An answer that does not stand in its text is dropped, and
    counted. Read the rows before you train on them. A run that was ended goes on with the same command.
    """
    passages = made.read_passages(documents, passage_words)
    everything = frozenset(passage.document for passage in passages)
    evaluated = made.split(everything, evaluation_share, seed)
    requests = [made.PassageRequest(passage, model, per_passage) for passage in passages]
    output.mkdir(parents=True, exist_ok=True)
    with Journal(output / JOURNAL) as journal, counted_bars() as told:
        failures = ask_all(
            requests,
            journal,
            lambda: gateway(url, context, namespace),
            key,
            concurrency=concurrency,
            on_progress=lambda done: told("passages", done, len(requests)),
        )
        responses = {request: answer for request in requests if (answer := journal.answer(request))}
    kept = made.keep(responses)
    kept.dropped.update(failures.values())
    _tell_dropped(kept)
    rows = {
        name: _rows(name, kept.questions, documents_of, negative_share, refusal, seed)
        for name, documents_of in (("train", everything - evaluated), ("eval", evaluated))
    }
    for name, made_rows in rows.items():
        _write(output / f"{name}.jsonl", made_rows)
    if as_json:
        counts = {name: len(made_rows) for name, made_rows in rows.items()}
        print_json(
            {"folder": str(output), "rows": counts, "dropped": dict(kept.dropped), "evaluated": sorted(evaluated)}
        )
        return
    for name, made_rows in rows.items():
        click.echo(f"{output / name}.jsonl: {len(made_rows)} rows")
    tell(f"for the evaluation: {', '.join(sorted(evaluated))}")


COMMANDS = (questions,)


def _rows(
    name: str,
    questions: Iterable[made.Question],
    documents: frozenset[str],
    negative_share: float,
    refusal: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Of the questions of these documents. Raises NoQuestions."""
    there = [each for each in questions if each.passage.document in documents]
    if not there:
        raise NoQuestions(
            f"{name}: no question of {', '.join(sorted(documents))} can be used: see what was dropped; a larger model, or "
            "shorter passages, make better ones"
        )
    both = made.with_negatives(there, negative_share, seed)
    if name == "train":
        return [made.training_row(each, refusal) for each in both]
    return [plain(made.evaluation_row(each, refusal)) for each in both]


def _tell_dropped(kept: made.Kept) -> None:
    for why, count in kept.dropped.most_common():
        tell(f"dropped: {count} {why}")


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
