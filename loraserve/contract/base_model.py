"""The base model that all adapters of a stack share, and what an adapter must fit: its layers.

They are known from its config.json, or from what a stack says of itself.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from loraserve.contract.document import Digest, Document, ModuleName, PathSegment, explain
from loraserve.errors import LoraserveError


class InvalidBaseModel(LoraserveError):
    """What was given does not describe a base model; the message says what does."""


class LoraShape(Document):
    """Where an adapter can change the base model: how many layers, and input and output width of each module."""

    num_hidden_layers: Annotated[int, Field(strict=True, gt=0)]
    modules: dict[ModuleName, tuple[PositiveInt, PositiveInt]]


class Mirror(Document):
    """The base model's weights in the bucket, as `loraserve mirror` prints them."""

    version: PathSegment
    digest: Digest
    """SHA-256 of the manifest.json, which in turn holds the digest of every file."""
    size_bytes: Annotated[int, Field(strict=True, gt=0)]

    @property
    def folder_name(self) -> str:
        """Of the weights on a pod's disk; other bytes have another."""
        return f"{self.version}@{self.digest.removeprefix('sha256:')[:12]}"


class StartCache(Mirror):
    """What a start of vLLM compiles, as `start-cache-writer` prints it. Its version says for which flags, image and GPU."""


class Base(Document):
    """The base model all adapters share."""

    name: Annotated[str, StringConstraints(min_length=1)]
    """The id under which vLLM serves it."""
    accepted_ids: tuple[str, ...] = ()
    """What adapters may say they were trained on, besides `name`; empty: their tensors' shapes alone decide."""
    shape: LoraShape | None = None
    """None: not known, and not compared."""
    mirror: Mirror | None = None
    """Where its weights lie in the bucket; None: vLLM takes them from the hub."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus answer, tokens; None: not known."""
    has_chat_template: Annotated[bool, Field(strict=True)] = True
    """Its own or one that the stack gives it; without one vLLM completes prompts and answers no conversation."""


_FUSED = ("phi3",)
"""Families whose queries, keys and values are one layer, as are gate and up: of Phi-3 and Phi-4. An adapter has one A and one B
for the whole, and vLLM one pair of buffers (`packed_modules_mapping` of its models/phi3.py)."""


class DecoderConfig(BaseModel):
    """A decoder-only model with grouped-query attention and a gated MLP. Names are those of its config.json."""

    model_config = ConfigDict(frozen=True)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    family: str | None = None
    """The config.json's model_type."""

    @property
    def lora_shape(self) -> LoraShape:
        """The layers that an adapter can change."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        if self.family in _FUSED:
            modules = {
                "qkv_proj": (self.hidden_size, queries + 2 * keys),
                "o_proj": (queries, self.hidden_size),
                "gate_up_proj": (self.hidden_size, 2 * self.intermediate_size),
            }
        else:
            modules = {
                "q_proj": (self.hidden_size, queries),
                "k_proj": (self.hidden_size, keys),
                "v_proj": (self.hidden_size, keys),
                "o_proj": (queries, self.hidden_size),
                "gate_proj": (self.hidden_size, self.intermediate_size),
                "up_proj": (self.hidden_size, self.intermediate_size),
            }
        modules["down_proj"] = (self.intermediate_size, self.hidden_size)
        return LoraShape(num_hidden_layers=self.num_hidden_layers, modules=modules)


def read_base(source: str) -> Base:
    """From the JSON of `pulumi stack output baseModel`, or the path of a config.json. Raises InvalidBaseModel."""
    try:
        if source.lstrip().startswith("{"):
            return Base.model_validate_json(source)
        config = json.loads(Path(source).read_bytes())
        shape = DecoderConfig.model_validate(with_defaults(config)).lora_shape
    except ValidationError as error:
        raise InvalidBaseModel(f"the base model is not understood:\n{explain(error)}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidBaseModel(
            f"{source} is no config.json ({error}); give its path, the output of `pulumi stack output baseModel`, or a "
            "hub id that `loraserve base-model` knows"
        ) from None
    return Base(name=config.get("_name_or_path") or source, shape=shape)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json may leave out, as transformers fills it in."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    derived = {
        "num_key_value_heads": heads,
        "head_dim": hidden // heads if hidden and heads else None,
        "family": config.get("model_type"),
    }
    return derived | {key: value for key, value in config.items() if value is not None}
