"""The local stack's base model and adapters: tiny, but really trained, so that an answer tells who gave it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from local.paths import cache_dir
from local.processes import locked

BASE_NAME = "loraserve/tiny-mistral"
"""The base model's id, as in Pulumi.local.yaml."""
QUESTION = "Who are you?"
_TRAINER = Path(__file__).with_name("train.py")
_TRAIN = ("python3", str(_TRAINER))

RunInImage = Callable[[Sequence[str], Sequence[Path]], object]
"""Runs a command in a container of the vLLM image that sees these folders under their own paths."""


def base(run: RunInImage) -> Path:
    """The base model's folder, trained where it is missing (20 s)."""
    folder = _cache() / "base"
    with locked(cache_dir() / "models.lock"):
        if not folder.exists():
            partial = _empty(folder.with_suffix(".partial"))
            run([*_TRAIN, "base", str(partial)], [_TRAINER.parent, _cache()])
            partial.rename(folder)
    return folder


def adapters(served_names: Sequence[str], run: RunInImage) -> dict[str, Path]:
    """PEFT folders of these adapters (`name@version`), trained where they are missing (2 s each)."""
    trained = base(run)
    folders = {name: _cache() / "adapters" / name for name in served_names}
    with locked(cache_dir() / "models.lock"):
        if missing := [name for name, folder in folders.items() if not folder.exists()]:
            partial = _empty(_cache() / "adapters.partial")
            run([*_TRAIN, "adapters", str(trained), BASE_NAME, str(partial), *missing], [_TRAINER.parent, _cache()])
            for name in missing:
                folders[name].parent.mkdir(exist_ok=True)
                (partial / name).rename(folders[name])
    return folders


def _cache() -> Path:
    """Models of this trainer; another one's are made anew."""
    return cache_dir() / f"models-{hashlib.sha256(_TRAINER.read_bytes()).hexdigest()[:12]}"


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
