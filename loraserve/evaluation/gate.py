"""The gate: a candidate may be worse by at most the margin, with a stated error rate.

A test of non-inferiority. McNemar's answers another question, whether two versions differ at all: it lets through what
nobody could tell apart on too few rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from statistics import fmean, pvariance

from loraserve.contract.evaluation import Comparison, EvaluatedVersion
from loraserve.evaluation.statistics import (
    POWER,
    USUAL_DEVIATION,
    USUAL_DISCORDANT,
    bootstrap_interval,
    design_effect,
    detectable,
    least_share,
    required_rows,
    smallest_rows,
    tango_interval,
)

_BINARY = {0.0, 1.0}
_DOUBT = 0.001


@dataclass(frozen=True)
class Test:
    """What stands before anything is asked."""

    __test__ = False  # it is none of pytest's

    margin: float
    error_rate: float

    def compare(
        self,
        candidate: Sequence[float],
        other: Sequence[float],
        clusters: Sequence[str],
        data: str,
        against: EvaluatedVersion | None,
    ) -> Comparison:
        """Of the scores of each row, and what each row comes from."""
        rows, differences = len(clusters), [one - two for one, two in zip(candidate, other, strict=True)]
        clustered = _clustered(differences, clusters)
        effect = design_effect(clustered)
        right_or_wrong = {*candidate, *other} <= _BINARY
        if right_or_wrong:
            wins, losses = differences.count(1.0) / effect, differences.count(-1.0) / effect
            interval = tango_interval(wins, losses, rows / effect, self.error_rate)
        else:
            interval = bootstrap_interval(clustered, self.error_rate)
        small = rows / effect < smallest_rows(self.margin, self.error_rate)
        variances = _planned(differences, right_or_wrong) if small else (pvariance(differences),) * 2
        low, high = (ceil(required_rows(variance, self.margin, self.error_rate) * effect) for variance in variances)
        return Comparison(
            against=against,
            data=data,
            rows=rows,
            clusters=len(clustered),
            candidate_score=_share(candidate),
            score=_share(other),
            interval=interval,
            required_rows=(low, high),
            small=small,
        )

    def expectation(self, clusters: Sequence[str], graded: bool) -> str:
        """What the rows can show, said before anything is asked."""
        groups = len(set(clusters))
        variances = (USUAL_DEVIATION**2,) if graded else USUAL_DISCORDANT
        points = [f"{100 * detectable(groups, variance, self.error_rate):.1f}" for variance in variances]
        needed = [f"{required_rows(variance, self.margin, self.error_rate):,}" for variance in variances]
        usual = (
            f"where scores differ by a standard deviation of {USUAL_DEVIATION:g}"
            if graded
            else f"where {_range([f'{share:.0%}' for share in USUAL_DISCORDANT])} of answers are right in one version only"
        )
        return (
            f"{len(clusters):,} rows from {groups:,} documents or questions show a difference of {_range(points)} points with a "
            f"power of {POWER:.0%}; for the margin of {100 * self.margin:g} points {_range(needed)} would do, {usual}."
        )

    def both(self) -> str:
        """What it means that two gates have to be passed."""
        return (
            f"Both gates have to be passed: each keeps its error rate of {self.error_rate:.0%}, and their power multiplies "
            f"({POWER:g} x {POWER:g} = {POWER * POWER:.2f})."
        )


def _planned(differences: Sequence[float], right_or_wrong: bool) -> tuple[float, float]:
    """Few rows say little of how often two versions differ: what is usual, unless they show more beyond doubt."""
    if right_or_wrong:
        discordant = len(differences) - differences.count(0.0)
        low, high = USUAL_DISCORDANT
        return low, max(high, least_share(discordant, len(differences), _DOUBT))
    usual, seen = USUAL_DEVIATION**2, pvariance(differences)
    return min(usual, seen) or usual, max(usual, seen)


def _clustered(differences: Sequence[float], clusters: Sequence[str]) -> list[list[float]]:
    pairs = sorted(zip(clusters, differences, strict=True))
    return [[difference for _, difference in group] for _, group in groupby(pairs, key=lambda pair: pair[0])]


def _share(scores: Sequence[float]) -> float:
    return min(max(fmean(scores), 0.0), 1.0)


def _range(values: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(values))
