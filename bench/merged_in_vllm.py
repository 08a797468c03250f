"""What bench.two_bases runs in vLLM's image: an adapter becomes part of its base model, which then answers as it did.

merged_in_vllm.py BASE ADAPTER FOLDER
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys


def main(base: str, adapter: str, folder: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    adapted.merge_and_unload().to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
