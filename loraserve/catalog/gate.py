"""What may pass as an adapter: a PEFT LoRA as safetensors, checked without loading a tensor or trusting a byte."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraserve.catalog.files import UnsafeFile, open_regular
from loraserve.catalog.safetensors import BrokenSafetensors, Tensor, tensors_of
from loraserve.contract.base_model import Base, LoraShape
from loraserve.contract.document import Document, Rank, TargetModules, explain

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILE_LIMITS = {CONFIG_FILE: 1 << 20, WEIGHTS_FILE: 5 << 30}
"""Every file an adapter consists of, and the bytes it may have."""
MAX_HEADER_BYTES = 4 << 20
"""Twenty times what an adapter of a 70B model needs; parsed, it takes ten times as much memory."""
DTYPES = {"F32", "F16", "BF16"}

_LORA_TENSOR = re.compile(r"(?P<layer>[A-Za-z0-9_.]+\.(?P<module>[A-Za-z_]\w*))\.lora_(?P<half>[AB])\.weight", re.ASCII)
_BASE_LAYER = re.compile(
    r"base_model\.model\.(?:\w+\.)*layers\.(?P<index>0|[1-9]\d{0,3})\.\w+\.(?P<module>\w+)\.lora_(?P<half>[AB])\.weight",
    re.ASCII,
)


class UnsafeAdapter(UnsafeFile):
    """The folder is not a LoRA adapter that may be served; the message says why and what to do."""


class AdapterFacts(Document):
    """What an adapter's own files say about it."""

    base_model: str
    """The id PEFT recorded at training; often not the (quantised) model that serves."""
    rank: Rank
    alpha: float
    target_modules: TargetModules
    dtypes: tuple[str, ...]


class _PeftConfig(BaseModel):
    """The keys of adapter_config.json that decide whether vLLM can serve the adapter as it was trained."""

    model_config = ConfigDict(extra="ignore")

    peft_type: Literal["LORA"]
    base_model_name_or_path: Annotated[str, Field(min_length=1)]
    r: Rank
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target_modules: list[str] | str
    bias: str = "none"
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def unsupported(self) -> list[str]:
        """The features in use that vLLM refuses, or worse, ignores."""
        in_use = {
            "bias": self.bias != "none",
            "use_dora": self.use_dora,
            "modules_to_save": bool(self.modules_to_save),
            "rank_pattern": bool(self.rank_pattern),
            "alpha_pattern": bool(self.alpha_pattern),
        }
        return [name for name, used in in_use.items() if used]


def inspect(folder: Path, base: Base | None = None) -> AdapterFacts:
    """Checks the two PEFT files in `folder`, against the base model where it is given, and returns what they say.

    Raises UnsafeAdapter, UnsafeFile.
    """
    config = _read_config(folder)
    _refuse_pickle(folder)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    modules = _check_tensors(tensors, config.r)
    if isinstance(config.target_modules, list):
        _check_modules(config.target_modules, modules)
    if base:
        _check_base(base, config.base_model_name_or_path, tensors)
    return AdapterFacts(
        base_model=config.base_model_name_or_path,
        rank=config.r,
        alpha=config.lora_alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
    )


def _refuse_pickle(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.glob("adapter_model*") if file.suffix in {".bin", ".pt", ".pth"})
    if pickles and not (folder / WEIGHTS_FILE).exists():
        raise UnsafeAdapter(
            f"{pickles[0]} is a pickle, which can run code when read; save the adapter as {WEIGHTS_FILE} instead"
        )


def _read_config(folder: Path) -> _PeftConfig:
    with open_regular(folder / CONFIG_FILE, FILE_LIMITS[CONFIG_FILE]) as file:
        text = file.read()
    try:
        config = _PeftConfig.model_validate_json(text)
    except ValidationError as error:
        raise UnsafeAdapter(f"{CONFIG_FILE} is not a LoRA configuration:\n{explain(error)}") from None
    if unsupported := config.unsupported():
        raise UnsafeAdapter(f"{CONFIG_FILE} uses {', '.join(unsupported)}, which vLLM does not serve; train without")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = tensors_of(path, FILE_LIMITS[WEIGHTS_FILE], MAX_HEADER_BYTES)
    except BrokenSafetensors as error:
        raise UnsafeAdapter(f"{error}; save or publish the adapter again") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UnsafeAdapter(
                f"tensor {name!r} has dtype {tensor.dtype}; save the adapter as one of {', '.join(sorted(DTYPES))}"
            )
    return tensors


def _check_tensors(tensors: dict[str, Tensor], rank: int) -> set[str]:
    """The layers that have an A and a B of the declared rank, `layers.0.self_attn.q_proj`. Raises UnsafeAdapter."""
    halves: dict[str, set[str]] = {"A": set(), "B": set()}
    for name, tensor in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if not match:
            raise UnsafeAdapter(f"tensor {name!r} is not the A or B matrix of a linear layer; vLLM serves no others")
        rank_axis = 0 if match["half"] == "A" else 1
        if len(tensor.shape) != 2 or tensor.shape[rank_axis] != rank:
            raise UnsafeAdapter(f"tensor {name!r} has shape {list(tensor.shape)}, but {CONFIG_FILE} says rank {rank}")
        halves[match["half"]].add(match["layer"])
    if not tensors:
        raise UnsafeAdapter(f"{WEIGHTS_FILE} holds no tensor")
    if alone := halves["A"] ^ halves["B"]:
        raise UnsafeAdapter(f"layer {min(alone)!r} has only one of its two LoRA matrices; save the adapter again")
    return halves["A"]


def _check_modules(declared: list[str], layers: set[str]) -> None:
    """Every declared target must have a tensor and every tensor a target: the two files belong together."""
    names_of = {layer: _names_of(layer) for layer in sorted(layers)}
    if missing := set(declared).difference(*names_of.values()):
        raise UnsafeAdapter(f"{CONFIG_FILE} targets {min(missing)!r:.80}, but {WEIGHTS_FILE} has no tensor for it")
    for layer, names in names_of.items():
        if names.isdisjoint(declared):
            raise UnsafeAdapter(f"{WEIGHTS_FILE} changes {layer!r}, which {CONFIG_FILE} does not target")


def _check_base(base: Base, trained_on: str, tensors: dict[str, Tensor]) -> None:
    accepted = {base.name, *base.accepted_ids}
    if base.accepted_ids and trained_on not in accepted:
        raise UnsafeAdapter(
            f"it was trained on {trained_on!r:.80}, and this stack serves adapters of {', '.join(sorted(accepted))}: train it "
            "on one of them, or add the id to acceptedBaseIds if it means the same weights"
        )
    if base.shape:
        _check_shapes(base.name, base.shape, tensors)


def _check_shapes(base: str, shape: LoraShape, tensors: dict[str, Tensor]) -> None:
    """Every tensor must fit a layer that the base model has, and no layer be changed twice. Raises UnsafeAdapter."""
    changed: set[tuple[str, str, str]] = set()
    for name, tensor in tensors.items():
        place = _BASE_LAYER.fullmatch(name)
        widths = place and shape.modules.get(place["module"])
        if not place or not widths:
            raise UnsafeAdapter(
                f"tensor {name!r} is not of a layer that {base} has: train on some of {', '.join(shape.modules)}"
            )
        if int(place["index"]) >= shape.num_hidden_layers:
            raise UnsafeAdapter(
                f"tensor {name!r} is of layer {place['index']}, and {base} has {shape.num_hidden_layers}, counted from 0: "
                "train the adapter on this model"
            )
        axis, width = (1, widths[0]) if place["half"] == "A" else (0, widths[1])
        if tensor.shape[axis] != width:
            raise UnsafeAdapter(
                f"tensor {name!r} has shape {list(tensor.shape)}, and {place['module']} of {base} is {width} wide there: "
                "train the adapter on this model"
            )
        if place.groups() in changed:
            raise UnsafeAdapter(f"tensor {name!r} changes a layer that another one changes; save the adapter again")
        changed.add((place["index"], place["module"], place["half"]))


def _names_of(layer: str) -> set[str]:
    """The ways PEFT lets a config name a layer: in full, or by what follows any of its dots."""
    parts = layer.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}
