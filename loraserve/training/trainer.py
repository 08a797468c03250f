"""One run of transformers' Trainer over rows that are tokens already; the only module that needs torch (`loraserve[train]`)."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# One GPU is what memory is computed for; several would each get a copy.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import peft  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from loraserve.catalog.files import PARTIAL_PREFIX, put_in_place
from loraserve.catalog.gate import CONFIG_FILE, WEIGHTS_FILE
from loraserve.contract.training import Training
from loraserve.errors import LoraserveError
from loraserve.planning.instance_types import Gpu
from loraserve.planning.training_memory import TrainingRun, next_setting, training_problem
from loraserve.training.checkpoints import Store, newest, seal, step_of
from loraserve.training.labels import Encoder, Tokenizer, Tokens, batch
from loraserve.training.losses import curve
from loraserve.training.rows import InvalidTraining

KEPT_CHECKPOINTS = 2
"""transformers deletes the one before the last while the last has no marker yet."""
BFLOAT16_CAPABILITY = (8, 0)
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"

OnStep = Callable[[int, int, float], None]
"""Told (step, of how many, its loss)."""


class OutOfMemory(LoraserveError):
    """The GPU has not enough; the message says what to try."""


class Diverged(LoraserveError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Weights:
    """Of the base: a folder, or an id of the hub with its commit. `name` is what the adapter says it was trained on."""

    name: str
    revision: str | None = None
    folder: Path | None = None

    @property
    def _place(self) -> dict[str, Any]:
        place = str(self.folder) if self.folder else self.name
        return {"pretrained_model_name_or_path": place, "revision": None if self.folder else self.revision}

    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(**self._place)

    def stops(self, tokenizer: Tokenizer) -> frozenset[int]:
        """What vLLM ends an answer at."""
        try:
            told = transformers.GenerationConfig.from_pretrained(
                self._place["pretrained_model_name_or_path"], revision=self.revision
            )
            given = told.eos_token_id
        except OSError:  # it has no generation_config.json
            given = None
        ids = given if isinstance(given, list) else [given]
        return frozenset(id for id in (*ids, tokenizer.eos_token_id) if id is not None)

    def encoder(self, chat_template: str | None) -> Encoder:
        tokenizer = self.tokenizer()
        return Encoder(tokenizer, self.stops(tokenizer), chat_template)

    def model(self, method: str, cpu: bool) -> Any:
        if cpu:
            return transformers.AutoModelForCausalLM.from_pretrained(**self._place, dtype=torch.float32)
        quantisation = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return transformers.AutoModelForCausalLM.from_pretrained(
            **self._place,
            dtype=torch.bfloat16,
            device_map={"": 0},
            quantization_config=quantisation if method == "qlora" else None,
        )


@dataclass(frozen=True)
class Job:
    training: Training
    weights: Weights
    memory: TrainingRun
    digest: str
    """Of the run: it goes on from its own checkpoints only."""
    output: Path
    cpu: bool = False
    store: Store | None = None


def train(
    job: Job, rows: Sequence[Tokens], on_step: OnStep, tell: Callable[[str], None]
) -> tuple[Path, list[tuple[int, float]]]:
    """The adapter's folder, and the losses. Goes on from the last whole checkpoint, here or in the store.

    Raises OutOfMemory, Diverged, InvalidTraining (it does not fit this card).
    """
    _check_card(job)
    resumed = newest(job.output, job.digest)
    if job.store:
        job.store.bring(job.output, step_of(resumed), tell)
        resumed = newest(job.output, job.digest)
    if resumed:
        tell(f"Goes on after step {step_of(resumed)}.")
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(job.training.seed)
    try:
        trainer = _trainer(job, rows, on_step)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the GPU ran out of memory ({str(error).splitlines()[0]}); another process on it, or a card with less than was computed: "
            f"try {next_setting(job.memory)}"
        ) from None
    return _save(job, trainer.model), curve(trainer.state.log_history)


def _check_card(job: Job) -> None:
    if job.cpu:
        if job.training.method == "qlora":
            raise InvalidTraining("method qlora needs a GPU: set `method: lora` to train a small model on the CPU")
        return
    if not torch.cuda.is_available():
        raise InvalidTraining("there is no GPU here: train on one, or a small model with --cpu")
    card = torch.cuda.get_device_properties(0)
    if (card.major, card.minor) < BFLOAT16_CAPABILITY:
        raise InvalidTraining(f"{card.name} has no bfloat16: train on an A10G, L4 or newer")
    here = Gpu(card.name, card.total_memory >> 20)
    # The card that is there counts; the host's memory is not asked here.
    instance = replace(job.memory.instance, name=f"this machine ({card.name})", gpu=here, memory_mib=1 << 30)
    if problem := training_problem(replace(job.memory, instance=instance)):
        raise InvalidTraining(problem)


def _trainer(job: Job, rows: Sequence[Tokens], on_step: OnStep) -> Any:
    training = job.training
    model = job.weights.model(training.method, job.cpu)
    model.config.use_cache = False
    model.enable_input_require_grads()  # else no gradient gets past a checkpoint to the frozen base
    lora = peft.LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        target_modules=list(training.target_modules),
        task_type="CAUSAL_LM",
    )
    tokenizer = job.weights.tokenizer()
    padding = next(id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if id is not None)

    def collate(some: Sequence[Tokens]) -> dict[str, Any]:
        return {key: torch.tensor(value) for key, value in batch(some, padding).items()}

    trainer = transformers.Trainer(
        model=peft.get_peft_model(model, lora),
        args=_arguments(job),
        train_dataset=list(rows),
        data_collator=collate,
        callbacks=[_Watch(job, on_step)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _arguments(job: Job) -> Any:
    training = job.training
    return transformers.TrainingArguments(
        output_dir=str(job.output),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup,
        optim="adamw_torch",
        bf16=not job.cpu,
        use_cpu=job.cpu,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=1,  # a mean over several would differ after a resume
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=["mlflow"] if os.environ.get(MLFLOW_VARIABLE) else [],
        run_name=job.output.name,
    )


class _Watch(transformers.TrainerCallback):
    def __init__(self, job: Job, on_step: OnStep) -> None:
        self._job, self._on_step = job, on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if (loss := logs.get("loss")) is None:
            return
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at step {state.global_step}: lower learningRate ({self._job.training.learning_rate:g}), or look at "
                "the rows with --show"
            )
        self._on_step(state.global_step, state.max_steps, loss)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = self._job.output / f"checkpoint-{state.global_step}"
        checkpoint = seal(folder, self._job.digest, state.global_step)
        if self._job.store:
            self._job.store.keep(folder, checkpoint)


def _save(job: Job, model: Any) -> Path:
    """The two files of an adapter, in words that equal trainings share."""
    partial, folder = job.output / f"{PARTIAL_PREFIX}adapter", job.output / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, safe_serialization=True)
    for path in partial.iterdir():
        if path.name not in (CONFIG_FILE, WEIGHTS_FILE):
            path.unlink()
    config = json.loads((partial / CONFIG_FILE).read_bytes())
    config |= {
        "base_model_name_or_path": job.weights.name,
        "revision": job.weights.revision,
        "target_modules": sorted(config["target_modules"]),
    }
    (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    put_in_place(partial, folder)
    return folder
