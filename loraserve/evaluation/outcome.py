"""An evaluation from its files to its verdict: asked, scored, compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean

from loraserve.contract.evaluation import BaseIdentity, Comparison, EvaluatedVersion, Override, Result, Verdict
from loraserve.contract.served_name import ServedName
from loraserve.evaluation.answers import Answer
from loraserve.evaluation.definition import Evaluation, Plan
from loraserve.evaluation.gate import Test
from loraserve.evaluation.judge import JUDGE, Agreement, Opinion, Pair
from loraserve.evaluation.rows import Row, Rows
from loraserve.evaluation.runner import Asking, Endpoint, Role, Subject


@dataclass(frozen=True)
class Compared:
    """What is compared, by its bytes."""

    base: BaseIdentity
    candidate: EvaluatedVersion
    production: EvaluatedVersion | None = None
    base_endpoint: Endpoint | None = None
    """Of the stack that serves the base, where the candidate is a whole model and serves alone; None: an adapter's."""

    @property
    def against(self) -> Role:
        return Role.PRODUCTION if self.production else Role.BASE

    def subject(self, role: Role) -> Subject:
        base = self.base.model_dump_json()
        if role is Role.BASE:
            return Subject(role, self.base.name, base, self.base_endpoint)
        version = self.production if role is Role.PRODUCTION else self.candidate
        assert version
        if self.base_endpoint:
            return Subject(role, version.name, version.digest)
        return Subject(role, ServedName.of(version.name, version.version), f"{version.digest} {base}")


@dataclass(frozen=True)
class Scored:
    """One subject's answers to one row, and what they are worth."""

    answers: tuple[Answer, ...]
    scores: Mapping[str, float]
    failures: tuple[str, ...]
    """Each kind once, whichever of the answers has it."""


@dataclass(frozen=True)
class Part:
    """One set of rows: all that was answered to it, and the candidate compared with one other by every score."""

    name: str
    rows: Rows
    against: Role
    subjects: Mapping[Role, Sequence[Scored]]
    comparisons: Mapping[str, Comparison]
    opinions: Sequence[Opinion] = ()
    """Of the judge, on candidate (a) and other (b), by row."""


@dataclass(frozen=True)
class Noise:
    """The A/A run: the candidate against itself. What is no larger than this is no difference."""

    changed_answers: float
    """Share of rows."""
    changed_scores: float
    """Likewise, by the score that it was looked at with."""
    score: str
    difference: float


@dataclass(frozen=True)
class Outcome:
    plan: Plan
    compared: Compared
    parts: Sequence[Part]
    noise: Noise
    agreement: Agreement | None
    verdict: Verdict


def expectation(plan: Plan) -> str:
    """What the rows can show, before anything is asked."""
    evaluation, sets = plan.evaluation, [rows for rows in (plan.rows, plan.general) if rows]
    test = Test(evaluation.margin, evaluation.error_rate)
    scorer = evaluation.scorers.get(evaluation.primary_score)
    graded = scorer is None or scorer.graded or evaluation.sampling.samples > 1
    told = [test.expectation([row.cluster for row in rows.rows], graded) for rows in sets]
    if len(sets) > 1:
        told[1] = f"General set: {told[1]} {test.both()}"
    return "\n".join(told)


def evaluate(
    plan: Plan, compared: Compared, asking: Asking, now: datetime, judge_key: str | None, override: Override | None
) -> Outcome:
    """Raises UnfitJudge, Incomplete, BatchStopped, InvalidBatch and what `asking` does."""
    evaluation = plan.evaluation
    agreement = _agreement(plan, compared, asking, judge_key)
    production = (Role.PRODUCTION,) if compared.production else ()
    roles = (Role.BASE, *production, Role.CANDIDATE, Role.REPEAT)
    parts = [_part("primary", plan.rows, compared, roles, compared.against, asking, judge_key)]
    if plan.general:
        two = (Role.BASE, Role.CANDIDATE)
        parts.append(_part("general", plan.general, compared, two, Role.BASE, asking, judge_key))
    decisive = [part.comparisons[evaluation.primary_score] for part in parts]
    result = Result.worst([comparison.result(evaluation.margin) for comparison in decisive])
    verdict = Verdict(
        candidate=compared.candidate,
        base=compared.base,
        scorers=plan.scorers_digest,
        primary_score=evaluation.primary_score,
        margin=evaluation.margin,
        error_rate=evaluation.error_rate,
        primary=decisive[0],
        general=decisive[1] if plan.general else None,
        result=result,
        override=None if result is Result.PASS else override,
        evaluated_at=now,
    )
    return Outcome(plan, compared, parts, _noise(parts[0], evaluation), agreement, verdict)


def _agreement(plan: Plan, compared: Compared, asking: Asking, key: str | None) -> Agreement | None:
    """First of all: a judge that is unfit decides nothing."""
    judge = plan.evaluation.judge
    if not judge or not plan.labels:
        return None
    pairs = [Pair(label.question, label.context, label.reference, label.a, label.b) for label in plan.labels]
    agreement = Agreement.of(asking.opinions(judge, compared.subject(Role.BASE), key, pairs), plan.labels)
    if plan.evaluation.primary_score == JUDGE:
        agreement.check(judge)
    return agreement


def _part(
    name: str,
    rows: Rows,
    compared: Compared,
    roles: Sequence[Role],
    against: Role,
    asking: Asking,
    judge_key: str | None,
) -> Part:
    evaluation = asking.plan.evaluation
    answered = asking.rows(f"answers ({name} set)", rows, [compared.subject(role) for role in roles])
    scored = {
        role: [_scored(evaluation, row, answers) for row, answers in zip(rows.rows, each, strict=True)]
        for role, each in answered.items()
    }
    opinions: list[Opinion] = []
    if evaluation.judge:
        pairs = [
            Pair(row.question, row.context, "; or: ".join(row.references), one.answers[0].text, other.answers[0].text)
            for row, one, other in zip(rows.rows, scored[Role.CANDIDATE], scored[against], strict=True)
        ]
        opinions = asking.opinions(evaluation.judge, compared.subject(Role.BASE), judge_key, pairs)
        for side, role in enumerate((Role.CANDIDATE, against)):
            scored[role] = [
                replace(one, scores={**one.scores, JUDGE: opinion.scores[side]})
                for one, opinion in zip(scored[role], opinions, strict=True)
            ]
    test, clusters = Test(evaluation.margin, evaluation.error_rate), [row.cluster for row in rows.rows]
    version = compared.production if against is Role.PRODUCTION else None
    comparisons = {
        score: test.compare(
            [one.scores[score] for one in scored[Role.CANDIDATE]],
            [one.scores[score] for one in scored[against]],
            clusters,
            rows.digest,
            version,
        )
        for score in scored[against][0].scores
    }
    return Part(name, rows, against, scored, comparisons, opinions)


def _scored(evaluation: Evaluation, row: Row, answers: tuple[Answer, ...]) -> Scored:
    """The mean of the samples: they make one row."""
    scores = {
        name: fmean(
            0.0
            if answer.error
            else scorer.score(answer.text, row.references)
            if row.answerable
            else float(answer.refuses(evaluation.refusal))
            for answer in answers
        )
        for name, scorer in evaluation.scorers.items()
    }
    kinds = dict.fromkeys(kind for answer in answers for kind in answer.failures(row, evaluation.refusal))
    return Scored(answers, scores, tuple(kinds))


def _noise(part: Part, evaluation: Evaluation) -> Noise:
    score = next(iter(evaluation.scorers)) if evaluation.primary_score == JUDGE else evaluation.primary_score
    pairs = list(zip(part.subjects[Role.CANDIDATE], part.subjects[Role.REPEAT], strict=True))
    differences = [one.scores[score] - other.scores[score] for one, other in pairs]
    changed = [[a.text for a in one.answers] != [b.text for b in other.answers] for one, other in pairs]
    return Noise(fmean(changed), fmean(each != 0 for each in differences), score, fmean(differences))
