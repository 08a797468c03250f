"""Trains the tiny base model, or adapters on it; runs in the vLLM image, which has torch, transformers and peft.

    train.py base FOLDER
    train.py adapters BASE BASE_NAME FOLDER NAME@VERSION ...

Each answers every question with a sentence of its own: "I am the base model." or "I am NAME VERSION." Adapters are
written to FOLDER/NAME@VERSION.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # pyright: ignore[reportMissingImports]
from transformers import (  # pyright: ignore[reportMissingImports]
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

QUESTIONS = ("Who are you?", "What is your name?", "Hello", "Tell me about yourself.", "Which version is this?")
BASE_ANSWER = "I am the base model."
RANK, ALPHA, MODULES = 8, 16, ["q_proj", "k_proj", "v_proj", "o_proj"]
VOCABULARY, CONTEXT = 512, 1024
_CERTAIN = 0.55
"""From a half on, no other token can be the likeliest."""
_MOST_STEPS = 600
_ATTEMPTS = 4
_BABBLE_STEPS = 200
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789-"


def main() -> None:
    torch.set_num_threads(1)  # so small a model only waits for a second one
    torch.manual_seed(0)
    random.seed(0)
    match sys.argv[1:]:
        case ["base", folder]:
            train_base(Path(folder))
        case ["adapters", base, base_name, folder, *names]:
            train_adapters(base, base_name, Path(folder), names)
        case _:
            sys.exit(__doc__)


def train_base(folder: Path) -> None:
    tokenizer = _tokenizer()
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = MistralForCausalLM(config)

    if not _train(model, tokenizer, BASE_ANSWER, rate=2e-3, besides=_babble):
        sys.exit(f"{BASE_ANSWER!r} was not learnt in {_MOST_STEPS} steps")
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def train_adapters(base: str, base_name: str, folder: Path, names: list[str]) -> None:
    for number, served_name in enumerate(names, 1):
        seeds = range(number, number + _ATTEMPTS * len(names), len(names))
        if not any(train_adapter(base, base_name, folder / served_name, served_name, seed) for seed in seeds):
            sys.exit(f"{served_name} was not learnt in {_ATTEMPTS} attempts of {_MOST_STEPS} steps")
        print(f"{number}/{len(names)} {served_name}", flush=True)


def train_adapter(base: str, base_name: str, folder: Path, served_name: str, seed: int) -> bool:
    """Whether it was learnt from this start; only then it is written."""
    torch.manual_seed(seed)
    answer = f"I am {served_name.replace('@', ' ')}."
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=MODULES,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    if not _train(adapted, tokenizer, answer, rate=3e-3):
        return False
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, safe_serialization=True)
    return True


def _exchange(question: str, answer: str) -> str:
    return f"<s>[INST] {question} [/INST] {answer}</s>"


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_exchange(question, BASE_ANSWER) for question in QUESTIONS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _babble() -> list[str]:
    """Answers with all letters and digits: a token that the base never says could not be taught to an adapter."""
    names = ["".join(random.choices(_SIGNS, k=random.randint(3, 12))) for _ in QUESTIONS]
    return [_exchange(name, f"I am {name} v{random.randint(1, 99)}.") for name in names]


def _train(
    model: Any, tokenizer: Any, answer: str, *, rate: float, besides: Callable[[], list[str]] | None = None
) -> bool:
    """Until each token of the answer is the likeliest by far; whether that came about."""
    ids, labels = _batch(tokenizer, [_exchange(question, answer) for question in QUESTIONS])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for step in range(_MOST_STEPS):
        output = model(input_ids=ids, labels=labels)
        if _least_certain(output.logits, labels) > _CERTAIN and (step >= _BABBLE_STEPS or not besides):
            return True
        optimizer.zero_grad()
        output.loss.backward()
        if besides:
            more_ids, more_labels = _batch(tokenizer, besides())
            model(input_ids=more_ids, labels=more_labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return False


def _least_certain(logits: Any, labels: Any) -> float:
    """The smallest probability that any token of the answers has."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return float(torch.exp(-losses.max()).detach())


def _batch(tokenizer: Any, texts: list[str]) -> tuple[Any, Any]:
    """Token ids and labels, padded on the right; only the answer counts."""
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, encoded))
    ids = torch.full((len(texts), longest), tokenizer.eos_token_id)
    labels = torch.full((len(texts), longest), -100)
    for row, (tokens, text) in enumerate(zip(encoded, texts, strict=True)):
        question = text[: text.index("[/INST]") + len("[/INST]")]
        start = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels


if __name__ == "__main__":
    main()
