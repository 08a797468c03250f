"""What may pass as an adapter: a PEFT LoRA as safetensors, checked without trusting a byte or holding a tensor.

What vLLM refuses when it loads an adapter is refused here, with the cause (vllm/lora/peft_helper.py of the pinned
version; a test compares the two lists).
"""

import codecs
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraserve.catalog.files import UnsafeFile, open_regular
from loraserve.catalog.safetensors import BrokenSafetensors, Tensor, first_not_finite, tensors_of
from loraserve.contract.base_model import Base, LoraShape
from loraserve.contract.document import Document, Rank, TargetModules, explain

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILE_LIMITS = {CONFIG_FILE: 1 << 20, WEIGHTS_FILE: 5 << 30}
"""Every file an adapter consists of, and the bytes it may have."""
NOT_PUBLISHED = ("added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer_config.json")
"""What PEFT's users find beside the weights, and vLLM takes from the base model alone."""
MAX_HEADER_BYTES = 4 << 20
"""Twenty times what an adapter of a 70B model needs; parsed, it takes ten times as much memory."""
DTYPES = {"F32", "F16", "BF16"}
GRADIENT_INITIALISATION = "lora_ga"
PLAIN_INITIALISATIONS = {"gaussian", "eva", "orthogonal", "mica", GRADIENT_INITIALISATION}
"""Those of PEFT's named ones that leave the base model's weights as they are when an adapter is loaded."""
EMBEDDINGS = {"embed_tokens", "lm_head"}

_LORA_TENSOR = re.compile(r"(?P<layer>[A-Za-z0-9_.]+\.(?P<module>[A-Za-z_]\w*))\.lora_(?P<half>[AB])\.weight", re.ASCII)
_PLAIN_PATTERN = re.compile(r"[\w.]+", re.ASCII)
_BASE_LAYER = re.compile(
    r"base_model\.model\.(?:\w+\.)*layers\.(?P<index>0|[1-9]\d{0,3})\.\w+\.(?P<module>\w+)\.lora_(?P<half>[AB])\.weight",
    re.ASCII,
)


class UnsafeAdapter(UnsafeFile):
    """The folder is not a LoRA adapter that may be served; the message says why and what to do."""


class AdapterFacts(Document):
    """What an adapter's own files say about it."""

    base_model: str | None
    """The id PEFT recorded at training; often not the (quantised) model that serves."""
    rank: Rank
    alpha: float
    target_modules: TargetModules
    dtypes: tuple[str, ...]


class _PeftConfig(BaseModel):
    """The keys of adapter_config.json that decide whether vLLM can serve the adapter as it was trained."""

    model_config = ConfigDict(extra="ignore")

    peft_type: Literal["LORA"]
    base_model_name_or_path: Annotated[str, Field(min_length=1)] | None
    r: Rank
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target_modules: list[str] | str
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    trainable_token_indices: Any = None
    layer_replication: Any = None
    use_dora: bool = False
    use_qalora: bool = False
    lora_bias: bool = False
    use_bdlora: Any = None
    alora_invocation_tokens: Any = None
    kasa_config: Any = None
    arrow_config: Any = None
    monteclora_config: Any = None
    velora_config: Any = None

    def unserved(self) -> list[str]:
        """The features in use that vLLM refuses when it loads the adapter, or worse, ignores; each with a remedy."""
        in_use = {
            "use_dora (DoRA): train without": self.use_dora,
            "use_qalora (QALoRA): train without": self.use_qalora,
            "use_bdlora (block-diagonal LoRA): train without": self.use_bdlora,
            "kasa_config (KaSA): train without": self.kasa_config,
            "monteclora_config (MonteCLoRA): train without": self.monteclora_config,
            "velora_config (VeLoRA): train without": self.velora_config,
            "arrow_config (Arrow's routing): publish the adapters that it routes between": self.arrow_config,
            "alora_invocation_tokens (activated LoRA): train without": self.alora_invocation_tokens,
            "bias: train with bias='none'": self.bias != "none",
            "lora_bias: train without": self.lora_bias,
            "layer_replication: train without": self.layer_replication,
            "modules_to_save (layers trained whole): train without": self.modules_to_save,
            "trainable_token_indices (trained embeddings): train without": self.trainable_token_indices,
            f"init_lora_weights {self.init_lora_weights!r:.40}, which changes the base model's weights: save it as a plain "
            "LoRA with PEFT's path_initial_model_for_weight_conversion": self._changes_the_base(),
        }
        return [feature for feature, used in in_use.items() if used]

    def _changes_the_base(self) -> bool:
        init = self.init_lora_weights
        return isinstance(init, str) and init.lower() not in PLAIN_INITIALISATIONS

    @property
    def largest_rank(self) -> int:
        """What vLLM compares with its --max-lora-rank."""
        return max([self.r, *(self.rank_pattern or {}).values()])

    def ranks_of(self, layer: str) -> frozenset[int]:
        """What ranks a layer may have. PEFT's patterns are regular expressions, of which the first that matches counts. A
        stranger's are not run here: one that is plain text decides, another leaves it open."""
        plain, all_open = self._patterns
        matching = [plain[name] for name in _names_of(layer) if name in plain]
        if not matching:
            return all_open | {self.r}
        _, rank, open_before = min(matching, key=lambda match: match[0])
        return open_before | {rank}

    @cached_property
    def _patterns(self) -> tuple[dict[str, tuple[int, int, frozenset[int]]], frozenset[int]]:
        """Plain pattern -> its place, its rank, and the ranks of the others before it; and those of all others."""
        plain, others = {}, frozenset[int]()
        for place, (pattern, rank) in enumerate((self.rank_pattern or {}).items()):
            if _PLAIN_PATTERN.fullmatch(pattern):
                plain[pattern] = place, rank, others
            elif rank not in others:
                others |= {rank}
        return plain, others


def inspect(folder: Path, base: Base | None = None) -> AdapterFacts:
    """Checks the two PEFT files in `folder`, against the base model where it is given, and returns what they say.

    Raises UnsafeAdapter, UnsafeFile.
    """
    if not folder.is_dir():
        raise UnsafeAdapter(f"{folder} is no folder; name the one that PEFT has saved")
    config = _read_config(folder)
    _refuse_pickle(folder)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    modules = _check_tensors(tensors, config)
    if isinstance(config.target_modules, list):
        _check_modules(config.target_modules, modules)
    if base:
        _check_base(base, config.base_model_name_or_path, tensors)
    _check_values(folder / WEIGHTS_FILE, tensors)
    return AdapterFacts(
        base_model=config.base_model_name_or_path,
        rank=config.largest_rank,
        alpha=config.lora_alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
    )


def notes(folder: Path) -> list[str]:
    """What a publisher should know of a folder that passes. Raises UnsafeAdapter, UnsafeFile."""
    found = []
    if beside := [file for file in NOT_PUBLISHED if (folder / file).exists()]:
        found.append(
            f"{', '.join(beside)}: not published, and without effect; vLLM uses the base model's tokenizer and chat template. "
            "An adapter that was trained with tokens or a template of its own answers worse than it should."
        )
    if str(_read_config(folder).init_lora_weights).lower() == GRADIENT_INITIALISATION:
        found.append(
            f"init_lora_weights {GRADIENT_INITIALISATION!r}: it was trained on weights that the initialisation had changed, and "
            "PEFT and vLLM load it on the base model's own: it answers otherwise than in training. Save it with PEFT's "
            "path_initial_model_for_weight_conversion."
        )
    return found


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
        config = _PeftConfig.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise UnsafeAdapter(f"{CONFIG_FILE} is not a LoRA configuration:\n{explain(error)}") from None
    if unserved := config.unserved():
        raise UnsafeAdapter(f"{CONFIG_FILE} uses what vLLM does not serve:\n" + "\n".join(unserved))
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


def _check_tensors(tensors: dict[str, Tensor], config: _PeftConfig) -> set[str]:
    """The layers that have an A and a B of a declared rank, `layers.0.self_attn.q_proj`. Raises UnsafeAdapter."""
    ranks: dict[str, dict[str, int]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        if not EMBEDDINGS.isdisjoint(name.split(".")):
            raise UnsafeAdapter(
                f"it changes the model's embeddings or its head ({', '.join(sorted(EMBEDDINGS))}), which is not served; "
                "train on attention and MLP layers only"
            )
        match = _LORA_TENSOR.fullmatch(name)
        if not match:
            raise UnsafeAdapter(f"tensor {name!r} is not the A or B matrix of a linear layer; vLLM serves no others")
        rank_axis = 0 if match["half"] == "A" else 1
        declared = config.ranks_of(match["layer"])
        if len(tensor.shape) != 2 or tensor.shape[rank_axis] not in declared:
            raise UnsafeAdapter(
                f"tensor {name!r} has shape {list(tensor.shape)}, but {CONFIG_FILE} says rank "
                + " or ".join(map(str, sorted(declared)))
            )
        ranks[match["half"]][match["layer"]] = tensor.shape[rank_axis]
    if not tensors:
        raise UnsafeAdapter(f"{WEIGHTS_FILE} holds no tensor")
    if alone := ranks["A"].keys() ^ ranks["B"].keys():
        raise UnsafeAdapter(f"layer {min(alone)!r} has only one of its two LoRA matrices; save the adapter again")
    if unequal := [layer for layer, rank in ranks["A"].items() if ranks["B"][layer] != rank]:
        raise UnsafeAdapter(f"layer {unequal[0]!r} has two LoRA matrices of different ranks; save the adapter again")
    return set(ranks["A"])


def _check_values(path: Path, tensors: dict[str, Tensor]) -> None:
    with open_regular(path, FILE_LIMITS[WEIGHTS_FILE]) as file:
        if name := first_not_finite(file, tensors):
            raise UnsafeAdapter(
                f"tensor {name!r} holds a value that is not finite (NaN or infinity): the training diverged, or the file was "
                "cast to a dtype that is too small; publish an earlier checkpoint"
            )


def _check_modules(declared: list[str], layers: set[str]) -> None:
    """Every tensor has a declared target: the two files belong together. A target may match no layer, as in PEFT."""
    targets = set(declared)
    for layer in sorted(layers):
        if _names_of(layer).isdisjoint(targets):
            raise UnsafeAdapter(f"{WEIGHTS_FILE} changes {layer!r}, which {CONFIG_FILE} does not target")


def _check_base(base: Base, trained_on: str | None, tensors: dict[str, Tensor]) -> None:
    accepted = ", ".join(sorted({base.name, *base.accepted_ids}))
    if base.accepted_ids and trained_on is None:
        raise UnsafeAdapter(
            f"{CONFIG_FILE} does not say what it was trained on, and this stack serves adapters of {accepted}: set "
            "base_model_name_or_path to the one that it was trained on"
        )
    if base.accepted_ids and trained_on not in {base.name, *base.accepted_ids}:
        raise UnsafeAdapter(
            f"it was trained on {trained_on!r:.80}, and this stack serves adapters of {accepted}: train it "
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
