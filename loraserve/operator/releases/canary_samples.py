"""How good the answers of a canary and of its stable version are, by what was sampled of them: no reference is known.

An answer has a fault where it is empty, cut, goes on with a question of its own, or has not the form that an evaluation
asks for by a pattern or a JSON schema.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from loraserve.contract.samples import Sample
from loraserve.contract.served_name import ServedName
from loraserve.evaluation.answers import EMPTY, FOLLOW_UP, TRUNCATED, WHITESPACE, Answer
from loraserve.evaluation.definition import Plan
from loraserve.evaluation.rows import Row
from loraserve.evaluation.scorers import Scorer
from loraserve.operator.releases.canary import NotJudged, Side

_FAULTS = {EMPTY, WHITESPACE, FOLLOW_UP, TRUNCATED}
_UNKNOWN = Row(question="sampled", reference="unknown")


def scorers_of(evaluation: Path | None) -> list[Scorer]:
    """Those of an evaluation's scorers that need no reference. Raises InvalidEvaluation."""
    scorers = Plan(evaluation).evaluation.scorers.values() if evaluation else ()
    return [scorer for scorer in scorers if not scorer.needs_reference]


def sides(
    name: str, samples: Iterable[Sample], versions: tuple[str, str], scorers: Sequence[Scorer]
) -> tuple[Side, Side]:
    """Sums over callers, of stable and canary. Raises NotJudged where nothing was sampled of one."""
    callers: dict[str, dict[str, list[float]]] = {version: defaultdict(list) for version in versions}
    for sample in samples:
        if sample.version in callers:
            callers[sample.version][sample.caller].append(_fault(sample, scorers))
    for version, found in callers.items():
        if not found:
            raise NotJudged(
                f"there is no sample of {ServedName.of(name, version)}: tenants let them be taken with samplePercent in their key's entry"
            )
    stable, canary = (Side(version, _sums(found.values()), 1) for version, found in callers.items())
    return stable, canary


def _fault(sample: Sample, scorers: Sequence[Scorer]) -> float:
    """0 where there is none, up to 1."""
    answer = Answer(sample.answer, sample.finish_reason)
    if _FAULTS.intersection(answer.failures(_UNKNOWN, None)):
        return 1.0
    return 1 - min((scorer.score(sample.answer, ("",)) for scorer in scorers), default=1.0)


def _sums(callers: Iterable[Sequence[float]]) -> dict[str, float]:
    """As a gateway exports them of failures."""
    pairs = [(len(faults), sum(faults)) for faults in callers]
    return {
        "callers": len(pairs),
        "requests": sum(requests for requests, _ in pairs),
        "faults": sum(faults for _, faults in pairs),
        "requests_squared": sum(requests**2 for requests, _ in pairs),
        "faults_squared": sum(faults**2 for _, faults in pairs),
        "faults_requests": sum(requests * faults for requests, faults in pairs),
    }
