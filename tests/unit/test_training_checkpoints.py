"""Checkpoints are whole or ignored, here and in the bucket; a training that is killed anywhere has the same losses in the end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from loraserve.catalog.bucket import Bucket
from loraserve.training.checkpoints import MARKER, Store, newest, seal, sealed, step_of
from loraserve.training.losses import LOSSES_FILE, PLOT_FILE, curve, smoothed, write

pytest_plugins = ["tests.unit.catalog_fixtures"]

RUN, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
STEPS, EVERY = 40, 7


def checkpoint(output: Path, step: int, run: str = RUN) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"moments" * step)
    (folder / "trainer_state.json").write_text(json.dumps({"step": step}))
    seal(folder, run, step)
    return folder


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    latest = checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(b"half")
    assert newest(tmp_path, RUN) == latest
    assert not (tmp_path / "checkpoint-11").exists(), "transformers would take the highest"
    assert step_of(latest) == 10
    assert step_of(None) == 0


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "a file is gone", "no marker", "marker cut"])
def test_a_damaged_checkpoint_is_none(tmp_path: Path, damage: str) -> None:
    earlier, folder = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    file = folder / "optimizer.pt"
    match damage:
        case "shorter":
            file.write_bytes(file.read_bytes()[:-1])
        case "other bytes":
            file.write_bytes(b"x" * file.stat().st_size)
        case "a file is gone":
            file.unlink()
        case "no marker":
            (folder / MARKER).unlink()
        case _:
            (folder / MARKER).write_bytes((folder / MARKER).read_bytes()[:-2])
    assert sealed(folder) is None
    assert newest(tmp_path, RUN) == earlier


def test_another_run_does_not_go_on_from_here(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, OTHER)
    assert newest(tmp_path, RUN) is None


class _Killed(Exception):
    pass


class Toy:
    """Learns as a training does: by a state, and by random numbers whose generator is part of it. `lives` is how many of its
    small acts it does before it is killed."""

    def __init__(self, output: Path, lives: float) -> None:
        self._output, self._lives = output, lives

    def _act(self) -> None:
        self._lives -= 1
        if self._lives < 0:
            raise _Killed

    def run(self) -> list[tuple[int, float]]:
        generator, weight, history = random.Random(0), 1.0, []
        begun = newest(self._output, RUN)
        if begun:
            state = json.loads((begun / "trainer_state.json").read_text())
            weight, history = state["weight"], state["log_history"]
            generator.setstate((state["random"][0], tuple(state["random"][1]), state["random"][2]))
        for step in range(step_of(begun) + 1, STEPS + 1):
            self._act()
            weight -= 0.01 * weight * generator.random()
            history.append({"step": step, "loss": weight})
            if step % EVERY == 0:
                self._save(step, {"weight": weight, "log_history": history, "random": generator.getstate()})
        return curve(history)

    def _save(self, step: int, state: dict[str, Any]) -> None:
        """In pieces, as transformers does, which knows nothing of the marker."""
        folder = self._output / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        content = json.dumps(state)
        for end in (len(content) // 2, len(content)):
            self._act()
            (folder / "trainer_state.json").write_text(content[:end])
        self._act()
        seal(folder, RUN, step)


@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_it_ends_with_the_same_losses(tmp_path: Path, seed: int) -> None:
    (tmp_path / "whole").mkdir()
    whole = Toy(tmp_path / "whole", float("inf")).run()
    generator, killed, found = random.Random(seed), 0, None
    while found is None:
        try:
            found = Toy(tmp_path, generator.randrange(1, 16)).run()
        except _Killed:
            killed += 1
    assert found == whole
    assert killed >= 3


# In a bucket.


def test_a_lost_disk_costs_nothing_that_the_bucket_has(tmp_path: Path, bucket: Bucket) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    store = Store(bucket, RUN)
    for step in (1, 2):
        folder = checkpoint(here, step)
        found = sealed(folder)
        assert found
        store.keep(folder, found)
        store.keep(folder, found)  # an upload that is done again
    store.bring(there, 0, print)
    brought = newest(there, RUN)
    assert step_of(brought) == 2
    assert brought
    assert (brought / "optimizer.pt").read_bytes() == b"moments" * 2
    Store(bucket, OTHER).bring(tmp_path, 0, print)
    assert newest(tmp_path, OTHER) is None


def test_what_was_not_uploaded_whole_is_ignored_and_what_is_here_already_not_fetched(
    tmp_path: Path, bucket: Bucket, s3: Any
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    store = Store(bucket, RUN)
    for step in (1, 2, 3):
        folder = checkpoint(here, step)
        found = sealed(folder)
        assert found
        store.keep(folder, found)
        if step == 2:  # as if the node had gone before the marker
            s3.delete_object(Bucket=bucket.name, Key=f"{found.prefix}/{MARKER}")
        if step == 3:
            s3.delete_object(Bucket=bucket.name, Key=f"{found.prefix}/optimizer.pt")
    told: list[str] = []
    store.bring(there, 0, told.append)
    assert step_of(newest(there, RUN)) == 1
    assert "step 3 is not whole" in told[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    store.bring(empty, 3, told.append)
    assert list(empty.iterdir()) == []


def test_the_same_step_of_another_attempt_may_have_other_bytes(tmp_path: Path, bucket: Bucket) -> None:
    store = Store(bucket, RUN)
    for attempt in ("one", "two"):
        output = tmp_path / attempt
        output.mkdir()
        folder = output / "checkpoint-5"
        folder.mkdir()
        (folder / "optimizer.pt").write_text(attempt)
        store.keep(folder, seal(folder, RUN, 5))
    (tmp_path / "new").mkdir()
    store.bring(tmp_path / "new", 0, print)
    assert step_of(newest(tmp_path / "new", RUN)) == 5


# Losses.


def test_a_step_that_was_done_again_counts_once() -> None:
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "loss": 1.5},
        {"step": 2, "train_loss": 9},
    ]
    assert curve(history) == [(1, 2.0), (2, 1.5)]
    assert smoothed([(1, 2.0), (2, 1.0)]) == [(1, 2.0), (2, 1.5)]


def test_the_losses_are_written_for_machines_and_people(tmp_path: Path) -> None:
    write(tmp_path, "faq <v3>", "10 rows", [(1, 2.0), (2, 1.0)])
    assert json.loads((tmp_path / LOSSES_FILE).read_text())[1] == {"step": 2, "loss": 1.0}
    page = (tmp_path / PLOT_FILE).read_text()
    assert "<svg" in page
    assert "faq &lt;v3&gt;" in page
