"""What the image's own vLLM makes of adapters in float32, which no stack serves in; runs in that image.

    answered_by_vllm.py BASE FOLDER

Reads FOLDER/expected.json of saved_by_peft.py, and writes FOLDER/answered.json: the same log-probabilities, of the base model
and of every adapter in FOLDER, all asked at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {  # as infra/vllm_container.py has it for the CPU, and all in this process
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",  # its container has no other
    "VLLM_NO_USAGE_STATS": "1",
}

from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]


def main(base: str, folder: str) -> None:
    tokens: list[int] = json.loads(Path(folder, "expected.json").read_text())["tokens"]
    adapters: list[Any] = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    requests = [None, *(LoRARequest(path.name, number, str(path)) for number, path in enumerate(adapters, 1))]
    vllm = LLM(
        model=base,
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        enable_lora=True,
        max_loras=len(adapters),
        max_lora_rank=16,
    )
    answers = vllm.generate(
        [{"prompt_token_ids": tokens}] * len(requests),
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
        lora_request=requests,
    )
    found = {
        request.lora_name if request else "base": [
            chances[token].logprob for token, chances in zip(tokens, answer.prompt_logprobs, strict=True) if chances
        ]
        for request, answer in zip(requests, answers, strict=True)
    }
    Path(folder, "answered.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
