"""`loraserve train` from its file to a published version, with a trainer in torch's place that writes an adapter at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from local.paths import CHECKOUT
from loraserve import training
from loraserve.catalog import lineage
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import ADAPTER_PREFIX
from loraserve.operator.cli import main
from loraserve.planning import stack_file as stack_files
from loraserve.training.labels import Encoder, Tokens
from tests.unit.adapters_and_vllm import BUCKET, write_adapter
from tests.unit.test_training_rows import Words

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")

SHAPE = {
    "hiddenSize": 16,
    "intermediateSize": 16,
    "numHiddenLayers": 2,
    "numAttentionHeads": 1,
    "numKeyValueHeads": 1,
    "headDim": 16,
    "vocabSize": 100,
    "weightsGib": 0.1,
}
TRAINED_ON = "acme/tiny-fp16"


@dataclass
class FakeTrainer:
    """What `loraserve.training.trainer` offers."""

    rank: int = 8
    jobs: list[Any] = field(default_factory=list)
    rows: list[Tokens] = field(default_factory=list)

    def module(self) -> ModuleType:
        fake, made = self, ModuleType("loraserve.training.trainer")

        @dataclass(frozen=True)
        class Weights:
            name: str
            revision: str | None = None
            folder: Path | None = None

            def encoder(self, chat_template: str | None) -> Encoder:
                words = Words()
                return Encoder(words, frozenset({words.id("</s>")}), chat_template)

        @dataclass(frozen=True)
        class Job:
            training: Any
            weights: Any
            memory: Any
            digest: str
            output: Path
            cpu: bool = False
            store: Any = None

        def train(job: Job, rows: list[Tokens], on_step: Any, tell: Any) -> tuple[Path, list[tuple[int, float]]]:
            fake.jobs.append(job)
            fake.rows = rows
            for step in (1, 2):
                on_step(step, 2, 1.0 / step)
            folder = write_adapter(job.output / "adapter", rank=fake.rank, base_model_name_or_path=job.weights.name)
            return folder, [(1, 1.0), (2, 0.5)]

        vars(made).update(Weights=Weights, Job=Job, train=train)
        return made


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    fake = FakeTrainer()
    module = fake.module()
    monkeypatch.setitem(sys.modules, "loraserve.training.trainer", module)
    monkeypatch.setattr(training, "trainer", module, raising=False)
    return fake


@dataclass
class World:
    folder: Path

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        lines = isinstance(content, list)
        path.write_text("\n".join(map(json.dumps, content)) if lines else yaml.safe_dump(content))
        return path

    def train(self, *options: str, **settings: Any) -> int:
        file = self.write("faq.yaml", {"rows": "rows.jsonl"} | settings)
        return main(["train", str(file), "--stack-file", str(self.folder / "Pulumi.dev.yaml"), *options])


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    (tmp_path / "Pulumi.yaml").write_text((CHECKOUT / "Pulumi.yaml").read_text())
    own = {
        "baseModel": "acme/tiny",
        "baseModelShape": SHAPE,
        "acceptedBaseIds": [TRAINED_ON],
        "trainingBase": {"name": TRAINED_ON, "revision": "0" * 40},
        "publicAccessCidrs": ["203.0.113.0/24"],
        "chatTemplateFile": "chat.jinja",
    }
    dev = yaml.safe_load((CHECKOUT / "Pulumi.dev.yaml").read_text())
    dev["config"] |= {f"loraserve:{key}": value for key, value in own.items()}
    made.write("Pulumi.dev.yaml", dev)
    (tmp_path / "chat.jinja").write_text((CHECKOUT / "loraserve/planning/mistral_chat.jinja").read_text())
    made.write("rows.jsonl", [{"input": f"question {n}", "output": f"answer {n}"} for n in range(20)])
    return made


def test_a_dry_run_shows_what_would_be_learnt_and_trains_nothing(
    world: World, trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.train("--dry-run", "--show", "1") == 0
    shown = capsys.readouterr()
    assert "[INST] question 0 [/INST][ answer][ 0][</s>]" in shown.out
    assert (
        "20 rows, 160 tokens, of which 60 are learnt; the longest has 8. 6 steps in 3 epochs, on acme/tiny-fp16."
        in shown.err
    )
    assert "Memory on g6.xlarge, computed:" in shown.err
    assert trainer.jobs == []


def test_the_result_is_checked_published_with_its_lineage_and_its_entry_printed(
    world: World, trainer: FakeTrainer, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.train("--bucket", BUCKET, "--model", "tiny-faq", "--version", "v1", "--name", "faq", rank=8) == 0
    shown = capsys.readouterr()
    entry = yaml.safe_load(shown.out)[0]
    assert (entry["name"], entry["version"], entry["rank"]) == ("faq", "v1", 8)
    assert "step 2 of 2, loss 0.5000" in shown.err
    (record,) = lineage.read(bucket, VersionId(ADAPTER_PREFIX, "tiny-faq", "v1"))
    assert record.origin
    assert record.origin.data
    assert record.origin.training
    assert record.origin.training["base"] == f"{TRAINED_ON}@{'0' * 40}"
    assert (record.origin.training["rank"], record.origin.training["lastLoss"]) == (8, 0.5)
    assert json.loads((world.folder / "faq.training" / "losses.json").read_text())[-1] == {"step": 2, "loss": 0.5}


def test_a_result_that_the_gate_refuses_is_not_published(
    world: World,
    trainer: FakeTrainer,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real: Callable[..., Any] = write_adapter

    def wider(*arguments: Any, **words: Any) -> Path:
        shapes = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [8, 99]}
        shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"] = [99, 8]
        return real(*arguments, shapes=shapes, **words)

    monkeypatch.setitem(globals(), "write_adapter", wider)
    assert world.train("--bucket", BUCKET, "--model", "tiny-faq", "--version", "v1") == 1
    assert "is 16 wide there" in capsys.readouterr().err
    assert bucket.objects("llm-models/") == []


def test_rows_from_a_bucket_are_those_of_a_file(world: World, trainer: FakeTrainer, bucket: Bucket) -> None:
    assert world.train() == 0
    bucket.create("data/rows.jsonl", (world.folder / "rows.jsonl").read_bytes())
    assert world.train(rows=f"s3://{BUCKET}/data/rows.jsonl") == 0
    first, second = trainer.jobs
    assert first.digest == second.digest, "so it goes on from the same checkpoints"


@pytest.mark.parametrize(
    ("settings", "options", "problem"),
    [
        ({"rank": 0}, (), "rank"),
        ({"rows": "none.jsonl"}, (), "cannot be read"),
        ({"evaluations": ["faq-eval.yaml"]}, (), "line 3: asks what the evaluation asks, 'question 2' (faq-eval.yaml)"),
        (
            {"maxLength": 16, "system": "many words " * 9},
            (),
            "line 1: 29 tokens; cut to 16 it would lose its whole answer",
        ),
        ({"batchSize": 256, "maxLength": 400_000}, (), "does not fit g6.xlarge"),
        ({}, ("--instance", "g4dn.xlarge"), "it takes bfloat16"),
        ({}, ("--version", "v1"), "--model, --version and --bucket"),
        ({}, ("--keep-checkpoints",), "--keep-checkpoints needs --bucket"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    world: World,
    trainer: FakeTrainer,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    options: tuple[str, ...],
    problem: str,
) -> None:
    world.write("eval.jsonl", [{"question": "question 2", "reference": "answer 2"}])
    scorers = {"exact": {"kind": "normalised-match"}}
    world.write("faq-eval.yaml", {"rows": "eval.jsonl", "scorers": scorers, "primaryScore": "exact"})
    assert world.train(*options, **settings) in (1, 2)
    assert problem in capsys.readouterr().err
    assert trainer.jobs == []


def test_long_rows_may_be_left_out_and_are_named(
    world: World, trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write("rows.jsonl", [{"input": "short", "output": "a"}, {"input": "long " * 40, "output": "b"}])
    assert world.train(maxLength=16, skipLong=True) == 0
    assert "line 2: left out, 45 tokens" in capsys.readouterr().err
    assert [row.line for row in trainer.rows] == [1]


def test_weights_that_are_not_the_mirrored_ones_are_refused(
    world: World, trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    file = world.folder / "Pulumi.dev.yaml"
    dev = yaml.safe_load(file.read_text())
    mirror = {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 10}
    dev["config"]["loraserve:trainingBase"] = {"name": TRAINED_ON, "mirror": mirror}
    world.write("Pulumi.dev.yaml", dev)
    weights = world.folder / "weights"
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        (weights / name).write_text("{}")
    assert world.train("--weights", str(weights)) == 1
    assert "other files than the mirrored acme/tiny-fp16 v1" in capsys.readouterr().err
    assert world.train() == 1
    assert "give --bucket, or --weights" in capsys.readouterr().err


def test_a_base_that_moves_is_not_trained_on(
    world: World, trainer: FakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    file = world.folder / "Pulumi.dev.yaml"
    dev = yaml.safe_load(file.read_text())
    del dev["config"]["loraserve:trainingBase"]
    world.write("Pulumi.dev.yaml", dev)
    assert world.train() == 1
    assert "acme/tiny at 'main' moves" in capsys.readouterr().err


def test_the_default_base_is_trained_on_its_unquantised_weights() -> None:
    base = stack_files.read(CHECKOUT / "Pulumi.dev.yaml").trained_on
    assert base.name == "mistralai/Mistral-7B-v0.1"
    assert base.revision
    assert len(base.revision) == 40


def test_without_torch_it_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "loraserve.training.trainer", None)
    monkeypatch.delattr(training, "trainer", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "loraserve.training.trainer")
    assert world.train() == 1
    assert "pip install 'loraserve[train]'" in capsys.readouterr().err
