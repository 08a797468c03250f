"""`loraserve train`: an adapter from rows, on one GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loraserve.catalog import adapters, base_weights, lineage
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import FileEntry, digest_of
from loraserve.catalog.gate import inspect
from loraserve.catalog.manifest import BaseManifest
from loraserve.catalog.versions import VersionId
from loraserve.operator.access.terminal import (
    busy,
    json_option,
    plain,
    print_json,
    print_published,
    progress_bars,
    tell,
)
from loraserve.planning import checkout
from loraserve.planning import stack_file as stack_files
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from loraserve.planning.training_target import TrainingTarget

if TYPE_CHECKING:
    from loraserve.contract.training import Training
    from loraserve.planning.training_memory import TrainingRun
    from loraserve.training.labels import Encoder, Tokens
    from loraserve.training.rows import Rows
    from loraserve.training.trainer import Weights

MAX_ROWS_BYTES = 1 << 30
LINEAGE_FILE = "lineage.json"
_S3 = "s3://"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=_PATH)
@click.option(
    "--stack-file",
    type=_PATH,
    default=Path("Pulumi.dev.yaml"),
    show_default=True,
    help="Of the stack that will serve it: its base model, chat template and GPU.",
)
@click.option(
    "--target", type=_PATH, metavar="FILE", help="The same as JSON, as `pulumi up` writes it for its own Job."
)
@click.option(
    "--weights", type=_PATH, metavar="FOLDER", help="The training base's files (default: mirror, or the hub)."
)
@click.option("--output", type=_PATH, metavar="FOLDER", help="For checkpoints and result (default: NAME.training).")
@click.option(
    "--instance",
    type=click.Choice(list(GPU_INSTANCE_TYPES)),
    help="What memory is computed for (default: the stack's GPU); in a run the card that is there counts.",
)
@click.option("--dry-run", is_flag=True, help="Check rows, tokens and memory; trains nothing.")
@click.option(
    "--show", type=click.IntRange(0), default=0, metavar="N", help="Print the first N rows as they are learnt."
)
@click.option("--cpu", is_flag=True, help="Train a small model without a GPU.")
@click.option("--bucket", "bucket_name", metavar="NAME", help="The stack's adapter bucket.")
@click.option("--keep-checkpoints", is_flag=True, help="Also in the bucket, for when this machine goes.")
@click.option("--version", help="Publish the result as this version, such as v1.")
@click.option("--model", help="Its folder in the catalog.")
@click.option("--name", help="What clients call it (default: MODEL).")
@click.option("--probe-prompt", "prompts", multiple=True, metavar="TEXT", help="As of `loraserve publish`; repeatable.")
@click.option("--note", metavar="TEXT", help="For the lineage.")
@json_option
def train(
    file: Path,
    stack_file: Path,
    target: Path | None,
    weights: Path | None,
    output: Path | None,
    instance: str | None,
    dry_run: bool,
    show: int,
    cpu: bool,
    bucket_name: str | None,
    keep_checkpoints: bool,
    version: str | None,
    model: str | None,
    name: str | None,
    prompts: tuple[str, ...],
    note: str | None,
    as_json: bool,
) -> None:
    """Train an adapter on rows, check it, and publish it with its lineage.

    FILE (YAML) names the rows and the settings (docs/training.md). A run that was ended goes on with the same command,
    from the last whole checkpoint. Needs `pip install 'loraserve[train]'`.
    """
    publishing = bool(version or model)
    if publishing and not (version and model and bucket_name):
        raise click.UsageError("to publish the result give --model, --version and --bucket")
    if keep_checkpoints and not bucket_name:
        raise click.UsageError("--keep-checkpoints needs --bucket")
    bucket = Bucket(bucket_name) if bucket_name else None
    folder = output or file.with_name(f"{file.stem}.training")
    prepared = _prepare(file, _target(stack_file, target, instance), folder, bucket, weights, cpu)
    _tell_of(prepared, show)
    if dry_run:
        return
    adapter, losses = _train(prepared, bucket if keep_checkpoints else None)
    facts = inspect(adapter, prepared.target.base)
    origin = lineage.Origin(
        data=prepared.rows.digest,
        code=checkout.commit(file.parent),
        training=prepared.training.settings
        | {"base": prepared.base_identity, "run": prepared.digest, "lastLoss": losses[-1][1]},
        note=note,
    )
    (folder / LINEAGE_FILE).write_text(json.dumps(plain(origin), indent=2) + "\n", encoding="utf-8")
    tell(f"Trained: {adapter}, rank {facts.rank} on {', '.join(facts.target_modules)}; loss {losses[-1][1]:.4f}")
    if not (publishing and bucket and model and version):
        tell(
            f"Publish it: loraserve publish {adapter} --lineage {folder / LINEAGE_FILE} --bucket … --model … --version …"
        )
        if as_json:
            print_json({"adapter": str(adapter), "lineage": plain(origin)})
        return
    with progress_bars() as progress:
        entry = adapters.publish(
            bucket, adapter, model, version, name, progress, base=prepared.target.base, probe_prompts=prompts
        )
    lineage.published(bucket, VersionId.of_adapter(entry), entry.digest, origin)
    print_published(entry, as_json)


@dataclass(frozen=True)
class _Prepared:
    """All that is known before the first step."""

    training: Training
    target: TrainingTarget
    rows: Rows
    tokens: list[Tokens]
    left_out: list[str]
    encoder: Encoder
    weights: Weights
    base_identity: str
    memory: TrainingRun
    output: Path
    cpu: bool

    @cached_property
    def digest(self) -> str:
        from loraserve.training.definition import run_digest

        return run_digest(self.training, self.rows.digest, self.base_identity)


def _target(stack_file: Path, given: Path | None, instance: str | None) -> TrainingTarget:
    from loraserve.training.rows import InvalidTraining

    if not given:
        return TrainingTarget.of(stack_files.read(stack_file), instance)
    target = TrainingTarget.parse(given.read_text(encoding="utf-8"), lambda why: InvalidTraining(f"{given}:\n{why}"))
    return target.model_copy(update={"instance": instance}) if instance else target


def _prepare(
    file: Path,
    target: TrainingTarget,
    output: Path,
    bucket: Bucket | None,
    folder: Path | None,
    cpu: bool,
) -> _Prepared:
    """Raises InvalidTraining, and what reading rows and weights raises."""
    from loraserve.evaluation.rows import refuse
    from loraserve.planning.training_memory import TrainingRun, training_problem
    from loraserve.training.definition import evaluated, read
    from loraserve.training.labels import within
    from loraserve.training.rows import InvalidTraining, Rows, leaks

    training = read(file)
    memory = TrainingRun.of(training, target.model_shape, target.instance)
    if not cpu and (problem := training_problem(memory)):
        raise InvalidTraining(problem)
    output.mkdir(parents=True, exist_ok=True)
    path = _rows_path(training.rows, file, output)
    rows = Rows.read(path, training.form, training.system)
    for name, plan in evaluated(training, file):
        asked = (*plan.rows.rows, *(plan.general.rows if plan.general else ()))
        if leaked := list(leaks(rows.examples, asked)):
            refuse(path, [f"{leak} ({name})" for leak in leaked], InvalidTraining)
    weights, identity = _weights(target, folder, bucket, output)
    encoder = weights.encoder(target.chat_template)
    tokens, left_out = within(encoder.encode(rows.examples), training.max_length, training.skip_long)
    return _Prepared(training, target, rows, tokens, left_out, encoder, weights, identity, memory, output, cpu)


def _rows_path(rows: str, file: Path, output: Path) -> Path:
    """Where they are on this machine."""
    if not rows.startswith(_S3):
        return file.parent / rows
    name, _, key = rows.removeprefix(_S3).partition("/")
    target = output / "rows.jsonl"
    target.write_bytes(Bucket(name).read(key, MAX_ROWS_BYTES))
    return target


def _weights(target: TrainingTarget, folder: Path | None, bucket: Bucket | None, output: Path) -> tuple[Weights, str]:
    """What is trained on, and what tells these weights from any others."""
    from loraserve.training.rows import InvalidTraining
    from loraserve.training.trainer import Weights

    base = target.trained_on
    if folder:
        with busy(f"reading {folder}"):
            files = {path.name: FileEntry.read(path) for path in base_weights.data_files(folder)}
        if base.mirror:
            found = BaseManifest.of(model=base.name, version=base.mirror.version, files=files).digest
            if found != base.mirror.digest:
                raise InvalidTraining(f"{folder} holds other files than the mirrored {base.name} {base.mirror.version}")
            return Weights(base.name, folder=folder), found
        described = json.dumps({name: entry.parts for name, entry in files.items()}, sort_keys=True)
        return Weights(base.name, folder=folder), digest_of(described.encode())
    if base.mirror:
        if not bucket:
            raise InvalidTraining(f"{base.name} lies in the stack's bucket: give --bucket, or --weights FOLDER")
        fetched = output / "base" / base.mirror.folder_name
        fetched.parent.mkdir(exist_ok=True)
        if not base_weights.is_complete(fetched):
            with progress_bars() as progress:
                base_weights.fetch(bucket, base.name, base.mirror, fetched, progress)
        return Weights(base.name, folder=fetched), base.mirror.digest
    if not base.revision or len(base.revision) != 40:
        raise InvalidTraining(
            f"{base.name} at {base.revision!r} moves: set trainingBase or baseModelRevision to a full commit hash, or give "
            "--weights FOLDER"
        )
    return Weights(base.name, base.revision), f"{base.name}@{base.revision}"


def _tell_of(prepared: _Prepared, show: int) -> None:
    from loraserve.planning.training_memory import plan_training
    from loraserve.training.labels import shown

    training, tokens = prepared.training, prepared.tokens
    for note in (*prepared.left_out, *prepared.rows.notes, *training.warnings(len(tokens))):
        tell(f"Note: {note}")
    learnt, read = (sum(part) for part in zip(*((len(t.ids) - t.answer, len(t.ids)) for t in tokens), strict=True))
    tell(
        f"{len(tokens)} rows, {read:,} tokens, of which {learnt:,} are learnt; the longest has {max(len(t.ids) for t in tokens):,}. "
        f"{training.steps(len(tokens))} steps in {training.epochs} epochs, on {prepared.weights.name}."
    )
    if not prepared.cpu:
        plan = plan_training(prepared.memory)
        tell(
            f"Memory on {prepared.memory.instance.name}, computed: {plan.gpu_gib:.1f} GiB of the GPU, {plan.host_gib:.1f} of the node."
        )
    for row in tokens[:show]:
        click.echo(shown(row, prepared.encoder.tokenizer))


def _train(prepared: _Prepared, bucket: Bucket | None) -> tuple[Path, list[tuple[int, float]]]:
    from loraserve.training import losses as curves
    from loraserve.training import trainer
    from loraserve.training.checkpoints import Store

    job = trainer.Job(
        prepared.training,
        prepared.weights,
        prepared.memory,
        prepared.digest,
        prepared.output,
        prepared.cpu,
        Store(bucket, prepared.digest) if bucket else None,
    )
    with _progress() as on_step:
        adapter, losses = trainer.train(job, prepared.tokens, on_step, tell)
    about = f"{len(prepared.tokens)} rows, {prepared.rows.digest}; {json.dumps(prepared.training.settings)}"
    curves.write(prepared.output, prepared.output.name, about, losses)
    return adapter, losses


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    """A bar with the time left on a terminal, a line for every tenth of the way elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("training")

        def update(step: int, of: int, loss: float) -> None:
            bars.update(task, completed=step, total=of, description=f"loss {loss:.4f}")
            if not console.is_terminal and (step == 1 or step % max(1, of // 10) == 0):
                left = bars.tasks[task].time_remaining
                tell(f"step {step} of {of}, loss {loss:.4f}" + (f", {left:.0f} s left" if left is not None else ""))

        yield update


COMMANDS = (train,)
