"""The training file, and what tells one run from another."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from pydantic import ValidationError

from loraserve.catalog.files import digest_of
from loraserve.contract.document import explain
from loraserve.contract.training import Training
from loraserve.evaluation.definition import Plan as EvaluationPlan
from loraserve.training.rows import InvalidTraining


def read(path: Path) -> Training:
    """Raises InvalidTraining."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Training.model_validate_json(json.dumps(content), by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidTraining(f"{path}:\n{explain(error)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise InvalidTraining(f"{path} cannot be read as a training: {error}") from None


def evaluated(training: Training, file: Path) -> list[tuple[str, EvaluationPlan]]:
    """The evaluations whose rows may not be trained on, by their names in the file. Raises InvalidEvaluation."""
    return [(name, EvaluationPlan(file.parent / name)) for name in training.evaluations]


def run_digest(training: Training, rows: str, base: str) -> str:
    """Of all that decides the result: a run goes on from checkpoints of its own only."""
    return digest_of(json.dumps([training.settings, rows, base], sort_keys=True).encode())
