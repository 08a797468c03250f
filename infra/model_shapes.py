"""What memory arithmetic needs to know of a base model: a few numbers from its config.json, and its weights' size."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from pydantic.alias_generators import to_camel

_GIB = 1024**3
_BYTES_PER_ELEMENT = 2
"""KV cache and adapters are held in 16 bits whatever the weights' quantisation."""


class ModelShape(BaseModel):
    """A decoder-only model with grouped-query attention and a gated MLP. Names are those of its config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    weights_gib: PositiveFloat
    """GPU memory of the loaded weights (vLLM logs it at start-up), GiB."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value of every layer for one token, bytes."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * _BYTES_PER_ELEMENT

    @property
    def lora_modules(self) -> dict[str, int]:
        """Input plus output width of each layer that an adapter can change."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": self.hidden_size + queries,
            "k_proj": self.hidden_size + keys,
            "v_proj": self.hidden_size + keys,
            "o_proj": queries + self.hidden_size,
            "gate_proj": self.hidden_size + self.intermediate_size,
            "up_proj": self.hidden_size + self.intermediate_size,
            "down_proj": self.intermediate_size + self.hidden_size,
        }

    def slot_gib(self, rank: int, target_modules: tuple[str, ...]) -> float:
        """GPU memory of one adapter slot, GiB: rank x (in + out) x 2 bytes, over the modules of every layer."""
        width = sum(self.lora_modules[module] for module in target_modules)
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
