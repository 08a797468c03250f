"""What evaluations in the cluster are given: their files, read and judged before anything is declared."""

from __future__ import annotations

from pathlib import Path

from infra.errors import ConfigError
from infra.names import PROJECT
from loraserve.evaluation.definition import Plan
from loraserve.evaluation.rows import InvalidEvaluation
from loraserve.planning.setting_sections import ClusterEvaluation
from loraserve.planning.stack_settings import Settings

LARGEST_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB."""


def read(evaluation: ClusterEvaluation) -> dict[str, str]:
    """Texts by path from the evaluation's folder. Raises InvalidEvaluation."""
    return Plan(Path(evaluation.file)).files


def check(settings: Settings) -> None:
    """Raises ConfigError with every problem."""
    problems = []
    for evaluation in settings.evaluations:
        try:
            size = sum(len(text.encode()) for text in read(evaluation).values())
        except InvalidEvaluation as error:
            problems.append(f"{PROJECT}:evaluations: {error}")
            continue
        if size > LARGEST_BYTES:
            problems.append(
                f"{PROJECT}:evaluations: {evaluation.file} and its rows have {size:,} bytes, and a ConfigMap takes "
                f"{LARGEST_BYTES:,}: name fewer rows there, and give all of them to `loraserve evaluate`"
            )
    if problems:
        raise ConfigError(problems)
