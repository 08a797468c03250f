"""The verdict of an evaluation: what was compared with what, on which rows, and whether it may be released.

It names the adapter, the base, the rows and the scorers by their digests, so it holds for these bytes alone. The bucket
keeps it under `evaluations/`, where only the pipeline's role writes; how it is computed: `loraserve/evaluation/`.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from loraserve.contract.addresses import EVALUATION_PREFIX
from loraserve.contract.document import Digest, Document, HubId, PathSegment
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]


class InvalidVerdict(LoraserveError):
    """The bucket holds something else than a verdict under a verdict's name."""


class Result(StrEnum):
    """Only `pass` lets a version through; `inconclusive` blocks as `fail` does."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @classmethod
    def worst(cls, results: list["Result"]) -> "Result":
        """Of gates that all have to be passed."""
        return next(result for result in (cls.FAIL, cls.INCONCLUSIVE, cls.PASS) if result in results)


class EvaluatedVersion(Document):
    """One version of an adapter or of a mirrored model, as the stack config's entry names and pins it."""

    name: HubId
    """Of an adapter as callers know it, or of a whole model."""
    version: PathSegment
    digest: Digest

    def __str__(self) -> str:
        return ServedName.of(self.name, self.version)


class BaseIdentity(Document):
    """Which weights the adapter was evaluated on. Two are the same base only where all that both know agrees."""

    name: Text
    revision: str | None = None
    """Of the hub, where the weights come from there."""
    mirror: Digest | None = None
    """Of the weights in the bucket."""


class Comparison(Document):
    """One non-inferiority test: the score may be worse by at most the margin.

    It passes where the interval's lower end lies above -margin, fails where its upper end lies below, and is
    inconclusive between. Either end is missed with the verdict's error rate.
    """

    against: EvaluatedVersion | None = None
    """None: the base model alone."""
    data: Digest
    rows: Count
    clusters: Count
    """Documents that the rows come from; rows of one document count for less than rows of as many."""
    candidate_score: Share
    score: Share
    """Of what it was compared with."""
    interval: tuple[Difference, Difference]
    """Of the candidate's score less the other's."""
    required_rows: tuple[Count, Count]
    """So many rows, from..to, conclude where the two do not differ in truth."""
    small: bool
    """Fewer rows than would conclude even if no answer differed: the interval leans on how unequal the two are."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.interval[0] >= self.interval[1]:
            raise ValueError("interval: must have a width, from the lower to the upper end")
        return self

    def result(self, margin: float) -> Result:
        low, high = self.interval
        return Result.PASS if low > -margin else Result.FAIL if high < -margin else Result.INCONCLUSIVE


class Override(Document):
    """A person lets through what did not pass."""

    reason: Text
    by: Text


class Verdict(Document):
    schema_version: Literal[1] = 1
    candidate: EvaluatedVersion
    base: BaseIdentity
    scorers: Digest
    """Of the scorers with their settings, the prompt form and the sampling."""
    primary_score: Text
    """The name of the score that decides."""
    margin: Annotated[float, Field(gt=0, lt=1)]
    error_rate: Annotated[float, Field(gt=0, lt=0.5)]
    """One-sided: so often a version that is worse by the margin passes one comparison."""
    primary: Comparison
    """Against the version in production, the base where there is none."""
    general: Comparison | None = None
    """Against the base, on a second set of rows that have nothing to do with the adapter's task; None: not asked."""
    result: Result
    override: Override | None = None
    evaluated_at: AwareDatetime

    @model_validator(mode="after")
    def _follows(self) -> Self:
        comparisons = [comparison for comparison in (self.primary, self.general) if comparison]
        computed = Result.worst([comparison.result(self.margin) for comparison in comparisons])
        if self.result is not computed:
            raise ValueError(f"result: is {computed.value!r} by the intervals and the margin that stand beside it")
        if self.override and self.result is Result.PASS:
            raise ValueError("override: there is nothing to override, it passes")
        return self

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises InvalidVerdict."""
        return cls._parsed(content, lambda why: InvalidVerdict(f"it is no verdict:\n{why}"))

    def to_json(self) -> bytes:
        """Canonical bytes, as they are kept."""
        return self._canonical()

    @property
    def allows_release(self) -> bool:
        return self.result is Result.PASS or self.override is not None


def verdict_key(name: str, version: str, digest: str) -> str:
    """Where a verdict lies in the bucket; `digest` is that of its own bytes."""
    return f"{verdict_prefix(name, version)}{digest.removeprefix('sha256:')}.json"


def verdict_prefix(name: str, version: str) -> str:
    """Under which all verdicts of one version lie."""
    return f"{EVALUATION_PREFIX}/{name}/{version}/"
