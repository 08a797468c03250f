# pyright: reportMissingImports=false
"""What a training really takes of a GPU, beside what `loraserve/planning/training_memory.py` computes.

    python -m bench.training_memory [--model mistral-7b] [--card 22.5]

trains three steps of a shape of `bench/gpu_memory.json` with random weights, in each method, by `loraserve train`'s own trainer, the longest
rows that it takes, and no more memory than the card has (GiB). Needs the extra `train` and a GPU; no network; room for the weights in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.gpu_memory import ROWS
from loraserve.contract.training import Training
from loraserve.planning.model_shapes import ModelShape
from loraserve.planning.training_memory import TrainingRun, plan_training

_GIB = 1024**3
_CONTEXT = 0.5
"""GiB of the card that torch's allocator does not count."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="mistral-7b")
    options.add_argument("--card", type=float, default=22.5, help="GiB of the card that is imposed")
    options.add_argument("--methods", nargs="+", default=["qlora", "lora"])
    options.add_argument("--batches", nargs="+", type=int, default=[2])
    given = options.parse_args()

    import torch

    config = json.loads(ROWS.read_text())["models"][given.model]
    card = torch.cuda.get_device_properties(0)
    torch.cuda.set_per_process_memory_fraction((given.card - _CONTEXT) * _GIB / card.total_memory)
    print(f"{card.name}, torch {torch.__version__}; a card of {given.card} GiB imposed", flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        _random_weights(config, Path(folder))
        for method in given.methods:
            for batch in given.batches:
                _measure(config, Path(folder), Training(rows="rows.jsonl", method=method, batch_size=batch, epochs=3))


def _measure(config: dict[str, Any], folder: Path, training: Training) -> None:
    import torch

    from loraserve.training.trainer import Job, OutOfMemory, Weights, train

    @dataclass(frozen=True)
    class Untokenised(Weights):
        def tokenizer(self) -> Any:
            return SimpleNamespace(pad_token_id=0, eos_token_id=2)

    run = TrainingRun.of(training, _shape(config), "g6.xlarge")
    plan = plan_training(run)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    began, losses = time.monotonic(), []
    with tempfile.TemporaryDirectory() as output:
        job = Job(training, Untokenised("random", folder=folder), run, "sha256:" + "0" * 64, Path(output))
        try:
            _, losses = train(job, _rows(training, config["vocab_size"]), lambda *_: None, print)
            told = f"{len(losses)} steps in {time.monotonic() - began:.0f} s"
        except OutOfMemory as error:
            told = f"out of memory: {error}"
    peak, reserved = (read() / _GIB for read in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved))
    print(
        f"{training.method}, {training.batch_size} x {training.max_length} tokens: allocated {peak:.2f}, reserved {reserved:.2f} GiB; "
        f"computed {plan.gpu_gib:.2f}, of it context {plan.context_gib:.2f} {json.dumps({k: round(v, 2) for k, v in vars(plan).items()})}; {told}",
        flush=True,
    )


def _rows(training: Training, vocabulary: int) -> list[Any]:
    from loraserve.training.labels import Tokens

    drawn, length = random.Random(0), training.max_length
    count = training.batch_size * training.accumulation
    return [Tokens(line, tuple(drawn.choices(range(3, vocabulary), k=length)), length // 2) for line in range(count)]


def _random_weights(config: dict[str, Any], folder: Path) -> None:
    import torch
    import transformers

    settings = {
        key: value
        for key, value in config.items()
        if key not in ("architectures", "torch_dtype", "quantization_config")
    }
    made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((torch.randn(weight.shape, device="cuda", dtype=torch.bfloat16) * 0.02).cpu())
    model.save_pretrained(folder)


def _shape(config: dict[str, Any]) -> ModelShape:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )
    return ModelShape(**{name: config[name] for name in names}, weights_gib=1)


if __name__ == "__main__":
    main()
