"""Saves adapters as PEFT's users do, and beside them what PEFT itself makes of them; runs in the vLLM image, which has both.

    saved_by_peft.py BASE FOLDER [NAME=ADAPTER ...]

Writes FOLDER/KIND for every kind, and FOLDER/expected.json: the tokens of a text, and by kind the log-probability of each token
but the first after those before it, in float32, as PEFT has it of what was saved; also of the base model and of adapters that
are there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from peft import LoraConfig, PeftModel, get_peft_model  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]

TEXT = "<s>[INST] The quick brown fox [/INST] jumps over 13 lazy dogs."
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-pattern": {"rank_pattern": {"q_proj": 16, "layers.1.self_attn.v_proj": 4}},
    "alpha-pattern": {"alpha_pattern": {"v_proj": 64}},
    "foreign-targets": {"target_modules": [*ATTENTION, "c_attn", "W_pack"]},
    "excluded": {"exclude_modules": ["o_proj"]},
    "no-base-named": {"base_model_name_or_path": None},
}
KINDS["many-settings"] = {key: value for settings in KINDS.values() for key, value in settings.items()}
KINDS |= {
    "rslora": {"use_rslora": True, "lora_alpha": 8},
    "all-linear": {"target_modules": "all-linear"},
    "expressions": {
        "target_modules": r".*\.(q|v|down)_proj",
        "rank_pattern": {r".*\.0\..*q_proj": 16},
        "alpha_pattern": {"(v|down)_proj": 4},
    },
    "rslora-pattern": {"use_rslora": True, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"v_proj": 4}},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "bfloat16": {},
}
_STRENGTH = 0.2
"""Of the B matrices, which are drawn, not trained: the log-probabilities change by several units."""


def main() -> None:
    base, folder, *others = sys.argv[1:]
    torch.set_num_threads(1)  # so small a model only waits for a second one
    tokens = AutoTokenizer.from_pretrained(base)(TEXT, add_special_tokens=False)["input_ids"]
    expected = {"base": chances(_base(base), tokens)}
    for name, adapter in (other.split("=", 1) for other in others):
        expected[name] = chances(PeftModel.from_pretrained(_base(base), adapter), tokens)
    for kind, settings in KINDS.items():
        saved = Path(folder) / kind
        save(base, saved, settings, torch.bfloat16 if kind == "bfloat16" else torch.float32)
        expected[kind] = chances(PeftModel.from_pretrained(_base(base), saved), tokens)
    Path(folder, "expected.json").write_text(json.dumps({"tokens": tokens, "chances": expected}))


def save(base: str, folder: Path, settings: dict[str, Any], dtype: Any) -> None:
    torch.manual_seed(0)
    plain = {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(_base(base), LoraConfig(**plain | settings))
    for name, weights in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights, std=_STRENGTH)
    adapted.to(dtype).save_pretrained(folder)
    file = folder / "adapter_config.json"
    named = {"base_model_name_or_path": settings.get("base_model_name_or_path", "loraserve/tiny-mistral")}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))  # PEFT has filled in the folder


def chances(model: Any, tokens: list[int]) -> list[float]:
    ids = torch.tensor([tokens])
    with torch.no_grad():
        found = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return found.gather(1, ids[0, 1:, None])[:, 0].tolist()


def _base(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


if __name__ == "__main__":
    main()
