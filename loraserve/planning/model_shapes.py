"""What is known of a base model: the numbers that memory arithmetic needs."""

from __future__ import annotations

from pydantic import ConfigDict, PositiveFloat, PositiveInt
from pydantic.alias_generators import to_camel

from loraserve.contract.base_model import DecoderConfig
from loraserve.contract.desired_state import Envelope

_BYTES_PER_ELEMENT = 2
"""KV cache and adapters are held in 16 bits whatever the weights' quantisation."""
_SPLIT_INPUTS = ("o_proj", "down_proj")
"""Layers whose input is divided among several GPUs; of the others, it is the output."""


class ModelShape(DecoderConfig):
    """The config.json's numbers in the stack's spelling, and the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    vocab_size: PositiveInt
    weights_gib: PositiveFloat
    """GPU memory of the loaded weights (vLLM logs it at start-up), GiB."""
    max_position_embeddings: PositiveInt | None = None
    """The longest context that the model was made for; None where it is not known."""
    quantisation: str | None = None
    """Such as `awq 4 bits`."""

    def kv_bytes_per_token(self, gpus: int = 1) -> int:
        """Key and value of every layer for one token, bytes on each GPU."""
        heads = max(1, self.num_key_value_heads // gpus)
        return 2 * self.num_hidden_layers * heads * self.head_dim * _BYTES_PER_ELEMENT

    def lora_tensors(self, envelope: Envelope, gpus: int = 1) -> list[int]:
        """Bytes of each tensor that vLLM makes for its slots on one GPU, in its order (`create_lora_weights`)."""
        per_width = envelope.slots * envelope.rank * _BYTES_PER_ELEMENT
        of_a_layer = []
        for module, (width_in, width_out) in self.lora_shape.modules.items():
            if module in envelope.target_modules:
                split = module in _SPLIT_INPUTS
                of_a_layer += [width_in // gpus if split else width_in, width_out if split else width_out // gpus]
        return [width * per_width for width in of_a_layer] * self.num_hidden_layers
