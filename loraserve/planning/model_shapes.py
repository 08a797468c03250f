"""What is known of base models: the numbers that memory arithmetic needs, and which have no chat template of their own."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, PositiveFloat
from pydantic.alias_generators import to_camel

from loraserve.contract.base_model import DecoderConfig

_GIB = 1024**3
_BYTES_PER_ELEMENT = 2
"""KV cache and adapters are held in 16 bits whatever the weights' quantisation."""


class ModelShape(DecoderConfig):
    """The config.json's numbers in the stack's spelling, and the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    weights_gib: PositiveFloat
    """GPU memory of the loaded weights (vLLM logs it at start-up), GiB."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value of every layer for one token, bytes."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * _BYTES_PER_ELEMENT

    def slot_gib(self, rank: int, target_modules: tuple[str, ...]) -> float:
        """GPU memory of one adapter slot, GiB: rank x (in + out) x 2 bytes, over the modules of every layer."""
        width = sum(sum(self.lora_shape.modules[module]) for module in target_modules)
        return rank * width * self.num_hidden_layers * _BYTES_PER_ELEMENT / _GIB


MISTRAL_7B_AWQ = ModelShape(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    weights_gib=3.98,
)

KNOWN_MODELS = {"TheBloke/Mistral-7B-v0.1-AWQ": MISTRAL_7B_AWQ}

DEFAULT_CHAT_TEMPLATES = {"TheBloke/Mistral-7B-v0.1-AWQ": Path(__file__).with_name("mistral_chat.jinja")}
"""Of known models that have none: the format of their family."""
