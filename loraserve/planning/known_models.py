"""Base models that people use, so that a stack names one and says nothing of its shape.

Shapes of those in bf16: LitGPT's table, made from each config.json (`litgpt/config.py` at Lightning-AI/litgpt 2685705); the
longest context of Qwen2.5's instruction models: their cards ("config.json is set for context length up to 32,768 tokens").
That Phi-4-mini's head is its embedding: its card. Quantised ones: Qwen3's from a survey of their quantization_config of 2026-04-26, with a link to each config.json; Llama's from
RedHatAI's card of w4a16 and from the report vllm#42488. All read 2026-11-28. A model whose source was not opened is not here;
`loraserve base-model` reads any other from the hub or a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from loraserve.planning.model_shapes import ModelShape

_GIB = 1024**3
_BYTES = {"bf16": 2.02, "fp8": 1.01, "awq": 0.544, "gptq": 0.54, "gptq 8 bits": 1.04}
"""GPU memory of one weight of a linear layer, scales and the allocator's rounding included: fitted to the rows without slots of
`bench/gpu_memory.json`, but for the last, which has none. Embeddings and the head are not quantised."""
_EMBEDDING_BYTES = 2


@dataclass(frozen=True)
class KnownModel:
    """`trained_as`: the model of which this one is a quantisation, and on which its adapters are trained; and its revision."""

    name: str
    shape: ModelShape
    has_chat_template: bool = True
    trained_as: str | None = None
    trained_revision: str = "main"
    short_context: int | None = None
    """The longest context that it was made for without a loss to short ones (LongRoPE); None: the longest of all."""

    @property
    def accepted_ids(self) -> tuple[str, ...]:
        """What its adapters may say they were trained on."""
        return (self.name, self.trained_as) if self.trained_as else (self.name,)


@dataclass(frozen=True)
class _Config:
    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    longest: int
    head_dim: int = 128
    tied: bool = False

    def shape(self, quantisation: str = "bf16") -> ModelShape:
        shape = ModelShape(
            family=self.family,
            quantisation=quantisation,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.longest,
            weights_gib=1,
        )
        linear = self.layers * sum(width_in * width_out for width_in, width_out in shape.lora_shape.modules.values())
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        weights = linear * _BYTES[quantisation] + embeddings * _EMBEDDING_BYTES
        return shape.model_copy(update={"weights_gib": round(weights / _GIB, 2)})


_MISTRAL_7B = _Config("mistral", 32, 4096, 14336, 32, 8, 32_000, 32_768)
_MISTRAL_7B_V3 = replace(_MISTRAL_7B, vocabulary=32_768)
_LLAMA_3_8B = _Config("llama", 32, 4096, 14336, 32, 8, 128_256, 8192)
_LLAMA_31_8B = replace(_LLAMA_3_8B, longest=131_072)
_LLAMA_31_70B = _Config("llama", 80, 8192, 28672, 64, 8, 128_256, 131_072)
_LLAMA_32_1B = _Config("llama", 16, 2048, 8192, 32, 8, 128_256, 131_072, head_dim=64, tied=True)
_LLAMA_32_3B = _Config("llama", 28, 3072, 8192, 24, 8, 128_256, 131_072, tied=True)
_QWEN2 = {
    "0.5B": _Config("qwen2", 24, 896, 4864, 14, 2, 151_936, 32_768, head_dim=64, tied=True),
    "1.5B": _Config("qwen2", 28, 1536, 8960, 12, 2, 151_936, 32_768, tied=True),
    "3B": _Config("qwen2", 36, 2048, 11008, 16, 2, 151_936, 32_768, tied=True),
    "7B": _Config("qwen2", 28, 3584, 18944, 28, 4, 152_064, 32_768),
    "14B": _Config("qwen2", 48, 5120, 13824, 40, 8, 152_064, 32_768),
    "32B": _Config("qwen2", 64, 5120, 27648, 40, 8, 152_064, 32_768),
}
_QWEN3 = {
    "0.6B": _Config("qwen3", 28, 1024, 3072, 16, 8, 151_936, 40_960, tied=True),
    "1.7B": _Config("qwen3", 28, 2048, 6144, 16, 8, 151_936, 40_960, tied=True),
    "4B": _Config("qwen3", 36, 2560, 9728, 32, 8, 151_936, 40_960, tied=True),
    "8B": _Config("qwen3", 36, 4096, 12288, 32, 8, 151_936, 40_960),
    "14B": _Config("qwen3", 40, 5120, 17408, 40, 8, 151_936, 40_960),
    "32B": _Config("qwen3", 64, 5120, 25600, 64, 8, 151_936, 40_960),
}
_GEMMA_2 = {
    "2b": _Config("gemma2", 26, 2304, 9216, 8, 4, 256_000, 8192, head_dim=256, tied=True),
    "9b": _Config("gemma2", 42, 3584, 14336, 16, 8, 256_000, 8192, head_dim=256, tied=True),
}
_PHI_4 = _Config("phi3", 40, 5120, 17920, 40, 10, 100_352, 16_384)
_PHI_4_MINI = _Config("phi3", 32, 3072, 8192, 24, 8, 200_064, 131_072, tied=True)
_LLAMA_31_8B_INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
MISTRAL_7B_AWQ = _MISTRAL_7B.shape("awq").model_copy(update={"weights_gib": 4.02})
"""Of the default base model; its weights were measured."""

_ALL = (
    KnownModel(
        "TheBloke/Mistral-7B-v0.1-AWQ",
        MISTRAL_7B_AWQ,
        has_chat_template=False,
        trained_as="mistralai/Mistral-7B-v0.1",
        trained_revision="27d67f1b5f57dc0953326b2601d68371d40ea8da",
    ),
    KnownModel("mistralai/Mistral-7B-v0.1", _MISTRAL_7B.shape(), has_chat_template=False),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.2", _MISTRAL_7B.shape()),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.3", _MISTRAL_7B_V3.shape()),
    KnownModel("meta-llama/Meta-Llama-3-8B-Instruct", _LLAMA_3_8B.shape()),
    KnownModel(_LLAMA_31_8B_INSTRUCT, _LLAMA_31_8B.shape()),
    KnownModel(
        "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
        _LLAMA_31_8B.shape("awq"),
        trained_as=_LLAMA_31_8B_INSTRUCT,
    ),
    KnownModel(
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
        _LLAMA_31_8B.shape("gptq"),
        trained_as=_LLAMA_31_8B_INSTRUCT,
    ),
    KnownModel("meta-llama/Llama-3.1-70B-Instruct", _LLAMA_31_70B.shape()),
    KnownModel("meta-llama/Llama-3.3-70B-Instruct", _LLAMA_31_70B.shape()),
    KnownModel("meta-llama/Llama-3.2-1B-Instruct", _LLAMA_32_1B.shape()),
    KnownModel("meta-llama/Llama-3.2-3B-Instruct", _LLAMA_32_3B.shape()),
    *(KnownModel(f"Qwen/Qwen2.5-{size}-Instruct", config.shape()) for size, config in _QWEN2.items()),
    *(KnownModel(f"Qwen/Qwen3-{size}", config.shape()) for size, config in _QWEN3.items()),
    KnownModel("Qwen/Qwen3-4B-Instruct-2507", replace(_QWEN3["4B"], longest=262_144).shape()),
    *(
        KnownModel(f"Qwen/Qwen3-{size}-{kind.upper()}", _QWEN3[size].shape(kind), trained_as=f"Qwen/Qwen3-{size}")
        for size in ("4B", "8B", "14B", "32B")
        for kind in ("awq", "fp8")
    ),
    *(
        KnownModel(f"Qwen/Qwen3-{size}-GPTQ-Int8", _QWEN3[size].shape("gptq 8 bits"), trained_as=f"Qwen/Qwen3-{size}")
        for size in ("0.6B", "1.7B")
    ),
    *(KnownModel(f"google/gemma-2-{size}-it", config.shape()) for size, config in _GEMMA_2.items()),
    KnownModel("microsoft/phi-4", _PHI_4.shape()),
    KnownModel("microsoft/Phi-4-reasoning", replace(_PHI_4, longest=32_768).shape()),
    *(
        KnownModel(f"microsoft/Phi-4-mini-{kind}", _PHI_4_MINI.shape(), short_context=4096)
        for kind in ("instruct", "reasoning")
    ),
)

KNOWN_MODELS = {model.name: model for model in _ALL}

_MISTRAL_CHAT = Path(__file__).with_name("mistral_chat.jinja")
DEFAULT_CHAT_TEMPLATES = {
    model.name: _MISTRAL_CHAT for model in _ALL if model.shape.family == "mistral" and not model.has_chat_template
}
"""Of known models that have none: the format of their family."""

_FAULTS = {
    ("llama", "awq"): (
        "adapters on an AWQ Llama 3 were seen to answer wrongly where the same ones on FP8 or bf16, and on an AWQ Mistral, did "
        "not (vllm#42488, of 0.20, open): evaluate them before anybody calls them, or take another quantisation"
    )
}
"""What is reported of vLLM and was not seen to be mended in the pinned version, by family and kind of quantisation."""


def known_fault(shape: ModelShape) -> str | None:
    """What vLLM is known to do wrong with adapters on such a model."""
    return _FAULTS.get((shape.family or "", (shape.quantisation or "").partition(" ")[0]))
