"""The stack's settings: every configuration key, typed and frozen, and the rules that hold between them.

Defaults of scalar keys stand in Pulumi.yaml, those of structured keys here. `pulumi up` reads them through
`infra/settings.py`, commands that need no Pulumi through `stack_file.py`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from loraserve.contract.addresses import PROJECT
from loraserve.contract.base_model import Base, Mirror
from loraserve.contract.desired_state import Adapter, Envelope, check_names
from loraserve.contract.document import explain, is_hub_id
from loraserve.contract.keys import EVERY_MODEL, Key
from loraserve.errors import LoraserveError
from loraserve.planning import gpu_memory, pod_resources
from loraserve.planning.envelope import envelope_around
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.model_shapes import KNOWN_MODELS, ModelShape

MAX_VPC_PREFIX = 20
"""A smaller VPC leaves fewer than 1,024 addresses per zone."""
_WIDEST_CIDR_IN_PRODUCTION = 16
EMPTY_NODE_MINUTES = 2
LEAST_SCALED_IDLE_MINUTES = 4
"""Less would end pods between two requests of one conversation."""

Arn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:(role|user)/.+$")]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: value or None)]
"""Pulumi.yaml cannot say 'no default': an empty text stands for none."""


class InvalidSettings(LoraserveError):
    """The stack's configuration cannot be deployed. Each problem names its key and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"the stack's configuration needs attention, nothing was changed:\n{listed}")
        self.problems = tuple(problems)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ClusterAccess(_Section):
    """Who may use the cluster's API, as an EKS access entry."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
    principal_arn: Arn
    policy: Literal["admin", "edit", "view"] = "view"


class Settings(_Section):
    """Every configuration key of this program; `loraserve:gpuMaxSize` is `gpu_max_size`."""

    environment: Literal["development", "production"]
    deletion_protection: bool

    vpc_cidr: IPv4Network
    availability_zone_count: Annotated[int, Field(ge=2, le=3)]
    availability_zones: tuple[str, ...] = ()
    nat: Literal["gateway", "gateway-per-zone", "instance"]
    cluster_access: tuple[ClusterAccess, ...] = ()
    public_access_cidrs: tuple[IPv4Network, ...] = ()
    private_access_cidrs: tuple[IPv4Network, ...] = ()
    control_plane_logs: tuple[Literal["api", "audit", "authenticator", "controllerManager", "scheduler"], ...] = (
        "audit",
        "authenticator",
    )

    system_instance_type: str
    system_node_count: Annotated[int, Field(ge=1, le=10)]
    gpu_instance_type: str
    gpu_min_size: Annotated[int, Field(ge=0)]
    gpu_max_size: Annotated[int, Field(ge=1)]
    gpu_idle_minutes: Annotated[int, Field(ge=1)]
    gpu_root_volume_gib: Annotated[int, Field(ge=100)]
    gpu_nvme_raid0: bool
    gpu_warm_pool: bool

    base_model: Annotated[str, StringConstraints(min_length=1)]
    base_model_revision: Annotated[str, StringConstraints(min_length=1)]
    base_model_shape: ModelShape | None = None
    base_model_mirror: Mirror | None = None
    accepted_base_ids: tuple[str, ...] = ()
    max_model_len: Annotated[int, Field(ge=16)]
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)]
    chat_template_file: OptionalText
    hub_token: SecretStr | None = None
    inference_replicas: Annotated[int, Field(ge=0)]
    longest_generation_seconds: Annotated[int, Field(ge=1)]
    startup_budget_minutes: Annotated[int, Field(ge=15)]
    scaling_enabled: bool
    inference_max_replicas: Annotated[int, Field(ge=1)]
    requests_per_replica: Annotated[int, Field(ge=1)]

    gateway_replicas: Annotated[int, Field(ge=2)]
    gateway_wait_seconds: Annotated[int, Field(ge=1)]
    gateway_keys: tuple[Key, ...] = ()
    gateway_certificate_arn: OptionalText

    adapters: tuple[Adapter, ...] = ()

    addons_enabled: bool
    monitoring_enabled: bool
    prometheus_volume_gib: Annotated[int, Field(ge=0)]
    vllm_image: OptionalText
    vllm_device: Literal["gpu", "cpu"]
    single_node: bool
    aws_endpoint_url: OptionalText
    loraserve_image: OptionalText

    @property
    def model_shape(self) -> ModelShape:
        """The base model's shape, declared or known."""
        return self.base_model_shape or KNOWN_MODELS[self.base_model]

    @property
    def base(self) -> Base:
        """What the agent and the gate know of the base model."""
        return Base(
            name=self.base_model,
            accepted_ids=self.accepted_base_ids,
            shape=self.model_shape.lora_shape,
            mirror=self.base_model_mirror,
        )

    @property
    def gpu_instance(self) -> GpuInstanceType:
        """Shape of the GPU node group's instance type."""
        return GPU_INSTANCE_TYPES[self.gpu_instance_type]

    @property
    def most_replicas(self) -> int:
        """vLLM replicas that there may be at once, but for a rolling update."""
        return max(self.inference_replicas, self.inference_max_replicas if self.scaling_enabled else 0)

    @property
    def node_idle_minutes(self) -> int:
        """How long the Cluster Autoscaler keeps an empty GPU node, after the time that KEDA keeps an idle pod on it."""
        if self.single_node:
            return 0
        return min(EMPTY_NODE_MINUTES, self.gpu_idle_minutes) if self.scaling_enabled else self.gpu_idle_minutes

    @property
    def needs_volume_driver(self) -> bool:
        """Whether anything in the cluster asks for an EBS volume."""
        return self.monitoring_enabled and self.prometheus_volume_gib > 0

    @property
    def envelope(self) -> Envelope | None:
        """Start-up flags around the declared adapters."""
        return envelope_around(self.adapters)

    @field_validator("adapters")
    @classmethod
    def _unique_names(cls, adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        check_names(adapters)
        return adapters

    @field_validator("gateway_keys")
    @classmethod
    def _unique_keys(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        _refuse_duplicates([key.id for key in keys], "keys", "make a new one with `python -m loraserve key`")
        return keys

    @field_validator("gateway_certificate_arn")
    @classmethod
    def _certificate(cls, arn: str | None) -> str | None:
        if arn and not re.fullmatch(r"arn:aws[a-z-]*:acm:[a-z0-9-]+:\d{12}:certificate/.+", arn):
            raise ValueError("give the ARN of an ACM certificate, or leave it empty for no load balancer")
        return arn

    @field_validator("cluster_access")
    @classmethod
    def _unique_access(cls, entries: tuple[ClusterAccess, ...]) -> tuple[ClusterAccess, ...]:
        _refuse_duplicates([entry.principal_arn for entry in entries], "entries", "keep one per principal")
        _refuse_duplicates([entry.name for entry in entries], "entries", "give each a name of its own")
        return entries

    @field_validator("vpc_cidr")
    @classmethod
    def _roomy_vpc(cls, cidr: IPv4Network) -> IPv4Network:
        if not 16 <= cidr.prefixlen <= MAX_VPC_PREFIX or not cidr.is_private:
            raise ValueError(f"use a private range between /16 and /{MAX_VPC_PREFIX}, such as 10.0.0.0/16")
        return cidr

    @field_validator("system_instance_type")
    @classmethod
    def _known_system_type(cls, name: str) -> str:
        if name not in SYSTEM_INSTANCE_TYPES:
            raise ValueError(
                f"choose one of {', '.join(SYSTEM_INSTANCE_TYPES)}, or add its shape to loraserve/planning/instance_types.py"
            )
        return name

    @field_validator("gpu_instance_type")
    @classmethod
    def _known_gpu_type(cls, name: str) -> str:
        if name not in GPU_INSTANCE_TYPES:
            why = "has no GPU" if name in SYSTEM_INSTANCE_TYPES else "is not a known instance type"
            raise ValueError(
                f"{why}; choose one of {', '.join(GPU_INSTANCE_TYPES)}, or add its shape to loraserve/planning/instance_types.py"
            )
        return name

    @field_validator("chat_template_file")
    @classmethod
    def _readable_template(cls, path: str | None) -> str | None:
        if path and not Path(path).is_file():
            raise ValueError(
                "there is no such file; give a Jinja file's path relative to Pulumi.yaml, or leave it empty"
            )
        return path

    @field_validator("availability_zones")
    @classmethod
    def _two_or_three_zones(cls, zones: tuple[str, ...]) -> tuple[str, ...]:
        if zones and len(set(zones)) not in (2, 3):
            raise ValueError("name two or three different zones, or none to have them chosen")
        return zones

    @model_validator(mode="after")
    def _cross_field_rules(self) -> Self:
        problems = [
            *self._sizing_problems(),
            *self._safety_problems(),
            *self._capacity_problems(),
            *self._key_problems(),
        ]
        if problems:
            raise InvalidSettings(problems)
        return self

    def _sizing_problems(self) -> list[str]:
        problems = []
        if self.gpu_max_size < self.gpu_min_size:
            problems.append(
                f"{PROJECT}:gpuMaxSize {self.gpu_max_size} is below gpuMinSize {self.gpu_min_size}: raise it to "
                f"{self.gpu_min_size}, or lower gpuMinSize"
            )
        if self.most_replicas > self.gpu_max_size:
            key = "inferenceReplicas" if self.most_replicas == self.inference_replicas else "inferenceMaxReplicas"
            problems.append(
                f"{PROJECT}:{key} {self.most_replicas} needs as many GPU nodes, and gpuMaxSize is "
                f"{self.gpu_max_size}: raise gpuMaxSize (each node takes {self.gpu_instance.vcpus} vCPUs of the G/VT quota)"
            )
        if self.scaling_enabled and not self.single_node and self.gpu_idle_minutes < LEAST_SCALED_IDLE_MINUTES:
            problems.append(
                f"{PROJECT}:gpuIdleMinutes {self.gpu_idle_minutes} leaves no time between two requests: set at least "
                f"{LEAST_SCALED_IDLE_MINUTES}, or scalingEnabled to false"
            )
        if self.gpu_warm_pool and self.gpu_nvme_raid0:
            problems.append(
                f"{PROJECT}:gpuWarmPool keeps stopped instances, and a stop wipes the NVMe disks of gpuNvmeRaid0: "
                "set one of the two to false"
            )
        if self.gpu_nvme_raid0 and not self.gpu_instance.nvme_gb:
            problems.append(f"{PROJECT}:gpuNvmeRaid0: {self.gpu_instance_type} has no NVMe disks: set it to false")
        return problems

    def _safety_problems(self) -> list[str]:
        problems = []
        if not self.public_access_cidrs and not self.private_access_cidrs:
            problems.append(
                f"{PROJECT}:publicAccessCidrs is empty, so nobody reaches the cluster's API, this program included: list your "
                "own address ranges, or keep it off and list the ranges of your VPN or bastion in privateAccessCidrs"
            )
        if self.environment != "production":
            return problems
        wide = [str(cidr) for cidr in self.public_access_cidrs if cidr.prefixlen < _WIDEST_CIDR_IN_PRODUCTION]
        if wide:
            problems.append(
                f"{PROJECT}:publicAccessCidrs opens the cluster's API to {', '.join(wide)}: list your own address ranges, "
                "or none and use privateAccessCidrs"
            )
        if not self.base_model_mirror and not _is_commit(self.base_model_revision):
            problems.append(
                f"{PROJECT}:baseModelRevision {self.base_model_revision!r} moves: in production pin the full commit hash of "
                f"{self.base_model} (shown by its hub under 'Files and versions', 'History'), or mirror it"
            )
        return problems

    def _capacity_problems(self) -> list[str]:
        if not self.base_model_shape and self.base_model not in KNOWN_MODELS:
            fields = ", ".join(to_camel(field) for field in ModelShape.model_fields)
            return [
                f"{PROJECT}:baseModelShape: nothing is known of {self.base_model}: give {fields} from its config.json "
                "(weightsGib: the size of its weight files)"
            ]
        if self.base_model_mirror and not is_hub_id(self.base_model):
            return [f"{PROJECT}:baseModelMirror: {self.base_model!r} is no hub id: set baseModel to what was mirrored"]
        if any(adapter.name == self.base_model for adapter in self.adapters):
            return [f"{PROJECT}:adapters: {self.base_model!r} is the base model's name: rename that adapter"]
        strangers = {
            m for adapter in self.adapters for m in adapter.target_modules
        } - self.model_shape.lora_shape.modules.keys()
        if strangers:
            return [
                f"{PROJECT}:adapters: target modules {', '.join(sorted(strangers))} are not LoRA layers of {self.base_model}: "
                f"train on some of {', '.join(self.model_shape.lora_shape.modules)}"
            ]
        serving = gpu_memory.Serving(
            self.model_shape, self.gpu_instance, self.max_model_len, self.gpu_memory_utilization, self.envelope
        )
        problems = [
            gpu_memory.memory_problem(serving),
            pod_resources.node_fit_problem(self.gpu_instance),
            pod_resources.disk_problem(self.adapters),
            pod_resources.base_disk_problem(self.base_model_mirror.size_bytes) if self.base_model_mirror else None,
        ]
        return [problem for problem in problems if problem]

    def _key_problems(self) -> list[str]:
        known = {EVERY_MODEL, self.base_model, *(adapter.name for adapter in self.adapters)}
        return [
            f"{PROJECT}:gatewayKeys: key {key.id} of {key.tenant} names {', '.join(strangers)}, which is not declared: choose "
            f"from {', '.join(sorted(known))}"
            for key in self.gateway_keys
            if (strangers := sorted(set(key.models) - known))
        ]


def parse(values: Mapping[str, Any]) -> Settings:
    """Validates configuration values by key without namespace; structured ones may still be JSON text.

    Raises InvalidSettings with every problem found.
    """
    decoded = {key: decode(value) for key, value in values.items()}
    unknown = [_unknown_key(key) for key in decoded if key not in _KEYS]
    known = {key: value for key, value in decoded.items() if key in _KEYS}
    try:
        settings = Settings.model_validate(known, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidSettings(unknown + [f"{PROJECT}:{line}" for line in explain(error).splitlines()]) from None
    except InvalidSettings as error:
        raise InvalidSettings([*unknown, *error.problems]) from None
    if unknown:
        raise InvalidSettings(unknown)
    return settings


_KEYS = {to_camel(field): field for field in Settings.model_fields}


def decode(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(_KEYS))}"
    return f"{PROJECT}:{key} is not a known key: {hint} (rename it, or `pulumi config rm {key}`)"


def _refuse_duplicates(names: list[str], what: str, fix: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two {what} have the name {', '.join(twice)}: {fix}")


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)
