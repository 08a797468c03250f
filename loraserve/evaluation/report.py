"""What an evaluation found: JSON for a machine, and one HTML page, made of the same, that needs nothing from elsewhere."""

import difflib
import html
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from loraserve.contract.evaluation import Comparison, Result
from loraserve.evaluation.answers import FAILURES
from loraserve.evaluation.judge import PROMPT
from loraserve.evaluation.outcome import Outcome, Part, Scored
from loraserve.evaluation.rows import Row
from loraserve.evaluation.runner import Role

Json = dict[str, Any]


def sentence(outcome: Outcome) -> str:
    """The verdict, for a person."""
    verdict = outcome.verdict
    candidate = str(verdict.candidate)
    found = [f"{verdict.result.value.upper()}: {candidate} by {verdict.primary_score}"]
    for part in outcome.parts:
        compared = part.comparisons[verdict.primary_score]
        result = compared.result(verdict.margin)
        low, high = (f"{100 * end:+.1f}" for end in compared.interval)
        told = result.value
        if result is Result.INCONCLUSIVE:
            told += f", {rows_needed(compared)} rows would do"
        elif compared.small:
            told += " on a small set, which shows a large difference only"
        found.append(
            f"{part.name} set: {told}; {compared.candidate_score:.3f} against {compared.score:.3f} of {_other(part)}, "
            f"difference {low} to {high} points on {compared.rows:,} rows"
        )
    if verdict.override:
        found.append(f"let through by {verdict.override.by}: {verdict.override.reason}")
    return "\n  ".join(found)


def rows_needed(comparison: Comparison) -> str:
    return " to ".join(dict.fromkeys(f"{rows:,}" for rows in comparison.required_rows))


def as_json(outcome: Outcome) -> Json:
    evaluation, judge = outcome.plan.evaluation, outcome.plan.evaluation.judge
    opinions = [opinion for part in outcome.parts for opinion in part.opinions]
    return {
        "verdict": outcome.verdict.model_dump(mode="json", by_alias=True),
        "evaluation": evaluation.model_dump(mode="json", by_alias=True),
        "noise": vars(outcome.noise),
        "judge": judge
        and {
            "prompt": PROMPT,
            "pairs": len(opinions),
            "unparsable": sum(opinion.unparsable for opinion in opinions),
            "turnedByOrder": sum(opinion.turned for opinion in opinions),
            "agreement": outcome.agreement and vars(outcome.agreement),
        },
        "sets": [_part(part) for part in outcome.parts],
    }


def _part(part: Part) -> Json:
    return {
        "name": part.name,
        "data": part.rows.digest,
        "against": part.against.value,
        "subjects": {role.value: _subject(part.rows.rows, scored) for role, scored in part.subjects.items()},
        "comparisons": {
            score: comparison.model_dump(mode="json", by_alias=True) for score, comparison in part.comparisons.items()
        },
        "rows": [_row(row, part, number) for number, row in enumerate(part.rows.rows)],
    }


def _subject(rows: Sequence[Row], scored: Sequence[Scored]) -> Json:
    answers = [answer for one in scored for answer in one.answers if not answer.error]
    seconds = [answer.seconds for answer in answers] or [0.0]
    categories: dict[str, list[Scored]] = defaultdict(list)
    for row, one in zip(rows, scored, strict=True):
        categories[row.category].append(one)
    return {
        "scores": _means(scored),
        "failures": {kind: sum(kind in one.failures for one in scored) for kind in FAILURES},
        "latencySeconds": {"mean": fmean(seconds), "median": median(seconds)},
        "tokens": {
            "prompt": sum(answer.prompt_tokens for answer in answers),
            "completion": sum(answer.completion_tokens for answer in answers),
        },
        "categories": {
            name: {"rows": len(those), "scores": _means(those)} for name, those in sorted(categories.items())
        },
    }


def _means(scored: Sequence[Scored]) -> dict[str, float]:
    return {name: fmean(one.scores[name] for one in scored) for name in scored[0].scores}


def _row(row: Row, part: Part, number: int) -> Json:
    told = {role.value: each[number] for role, each in part.subjects.items()}
    return row.model_dump(mode="json", exclude_none=True) | {
        "answers": {role: [answer.text for answer in one.answers] for role, one in told.items()},
        "scores": {role: dict(one.scores) for role, one in told.items()},
        "failures": {role: list(one.failures) for role, one in told.items() if one.failures},
        "errors": {
            role: error
            for role, one in told.items()
            if (error := next(filter(None, (a.error for a in one.answers)), None))
        },
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; border-bottom: 1px solid #ddd }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit } details { border-bottom: 1px solid #ddd; padding: .4rem 0 } summary { cursor: pointer }
.pass { color: #17692c } .fail { color: #a11 } .inconclusive { color: #8a5a00 } ins { background: #d9f2df; text-decoration: none } del { background: #f9dcdc }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #161616 } th, td, details { border-color: #444 } ins { background: #1d4528 } del { background: #5a2222 } .pass { color: #6fcf87 } .fail { color: #ff8a8a } .inconclusive { color: #e3b24f } }
"""


def as_html(outcome: Outcome) -> str:
    verdict, noise = outcome.verdict, outcome.noise
    title = f"{verdict.candidate}: {verdict.result.value}"
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>{_text(title)}</title><style>{_STYLE}</style>",
            f"<h1 class={verdict.result.value}>{_text(title)}</h1>",
            f"<pre>{_text(sentence(outcome))}</pre>",
            _facts(outcome),
            f"<p>A/A run: {noise.changed_answers:.1%} of rows had another answer the second time and {noise.changed_scores:.1%} another "
            f"{_text(noise.score)} (mean difference {100 * noise.difference:+.2f} points). What is no larger is noise.</p>",
            *(_part_html(part, verdict.primary_score, verdict.margin) for part in outcome.parts),
            "</html>",
        ]
    )


def _facts(outcome: Outcome) -> str:
    verdict, found = outcome.verdict, as_json(outcome)["judge"]
    facts = {
        "candidate": verdict.candidate.digest,
        "base": " ".join(filter(None, (verdict.base.name, verdict.base.revision, verdict.base.mirror))),
        "rows": verdict.primary.data,
        "scorers": verdict.scorers,
        "margin": f"{100 * verdict.margin:g} points, error rate {verdict.error_rate:.0%} (one-sided)",
        "evaluated at": verdict.evaluated_at.isoformat(timespec="seconds"),
    }
    if found:
        agreement = outcome.agreement
        facts["judge"] = (
            f"{found['pairs']} pairs in both orders, {found['turnedByOrder']} turned by the order, {found['unparsable']} verdicts "
            "unparsable; "
            + (
                f"agrees with people on {agreement.raw:.0%} of {agreement.labels} pairs, kappa {agreement.kappa:.2f}"
                if agreement
                else "never compared with people"
            )
        )
    return _table((), ([name, value] for name, value in facts.items()))


def _part_html(part: Part, primary: str, margin: float) -> str:
    told = _part(part)
    subjects: Mapping[str, Json] = told["subjects"]
    comparisons = [
        [f"{score} (decides)" if score == primary else score, *_comparison(comparison, margin)]
        for score, comparison in part.comparisons.items()
    ]
    overview = [
        *([score, *(_number(one["scores"].get(score)) for one in subjects.values())] for score in part.comparisons),
        *([kind, *(str(one["failures"][kind]) for one in subjects.values())] for kind in FAILURES),
        *(
            [f"latency, {which}", *(f"{one['latencySeconds'][which]:.2f} s" for one in subjects.values())]
            for which in ("mean", "median")
        ),
        *(
            [f"{which} tokens", *(f"{one['tokens'][which]:,}" for one in subjects.values())]
            for which in ("prompt", "completion")
        ),
    ]
    by_category = [
        [
            category,
            str(those["rows"]),
            *(_number(one["categories"][category]["scores"].get(primary)) for one in subjects.values()),
        ]
        for category, those in subjects[Role.CANDIDATE.value]["categories"].items()
    ]
    return "".join(
        [
            f"<h2>{_text(part.name.capitalize())} set</h2>",
            _table(
                ("score", "candidate", _other(part), "difference, points", "by this score", "rows", "would do"),
                comparisons,
            ),
            _table(("", *subjects), overview),
            f"<h3>{_text(primary)} by category</h3>",
            _table(("category", "rows", *subjects), by_category),
            f"<h3>Rows</h3><p>Marked in the candidate's answer: what {_text(_other(part))} has not.</p>",
            *(_row_html(row, part, primary) for row in told["rows"]),
        ]
    )


def _comparison(comparison: Comparison, margin: float) -> list[str]:
    low, high = (f"{100 * end:+.1f}" for end in comparison.interval)
    result = comparison.result(margin).value + (" (small set)" if comparison.small else "")
    scores = [_number(comparison.candidate_score), _number(comparison.score)]
    return [*scores, f"{low} to {high}", result, f"{comparison.rows:,}", rows_needed(comparison)]


def _row_html(row: Json, part: Part, primary: str) -> str:
    scores = {role: each.get(primary) for role, each in row["scores"].items()}
    other, candidate = part.against.value, Role.CANDIDATE.value
    one, two = scores[candidate], scores[other]
    mark = "pass" if one > two else "fail" if one < two else "same"
    reference = row.get("reference", "(cannot be answered)")
    shown = [
        ["reference", _text(reference if isinstance(reference, str) else " / ".join(reference))],
        *(
            [
                role,
                _number(scores[role]),
                _text(", ".join(row["failures"].get(role, []))),
                _diff(row["answers"][other][0], texts[0]) if role == candidate else _text(texts[0]),
            ]
            for role, texts in row["answers"].items()
        ),
    ]
    cells = "".join(
        f"<tr><th>{_text(name)}</th><td>{'</td><td>'.join(('', '', *rest) if name == 'reference' else rest)}</td></tr>"
        for name, *rest in shown
    )
    context = f"<pre>{_text(row['context'])}</pre>" if "context" in row else ""
    return (
        f"<details><summary><span class={mark}>{_number(two)} → {_number(one)}</span> [{_text(row['category'])}] "
        f"{_text(row['question'])}</summary>{context}<table>{cells}</table></details>"
    )


def _diff(other: str, candidate: str) -> str:
    """The candidate's answer, word by word against the other's."""
    return " ".join(_changes(other.split(), candidate.split()))


def _changes(before: list[str], after: list[str]) -> Iterator[str]:
    for kind, first, last, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = _text(" ".join(before[first:last])), _text(" ".join(after[start:end]))
        if kind == "equal":
            yield come
            continue
        if gone:
            yield f"<del>{gone}</del>"
        if come:
            yield f"<ins>{come}</ins>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{_text(each)}</th>' for each in heads)}</tr>" if heads else ""
    body = "".join(
        f"<tr><th>{_text(name)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    return f"<table>{head}{body}</table>"


def _other(part: Part) -> str:
    return "the base" if part.against is Role.BASE else "production"


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _text(text: str) -> str:
    return html.escape(text)
