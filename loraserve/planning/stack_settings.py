"""The stack's settings: every configuration key, typed and frozen, and what follows from them.

Defaults of scalar keys stand in Pulumi.yaml, those of structured keys here. Rules between keys are in
`settings_rules.py`; `settings_parser.py` makes a `Settings` of configuration values, and reports what is wrong with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from loraserve.contract.addresses import SERVING_NAMESPACE, stack_name_problem
from loraserve.contract.base_model import Base, Mirror, StartCache
from loraserve.contract.desired_state import Adapter, Envelope, check_names
from loraserve.contract.document import AdapterName, HubId, PathSegment
from loraserve.contract.evaluation import BaseIdentity
from loraserve.contract.keys import Key
from loraserve.contract.training import Training
from loraserve.planning import cold_start
from loraserve.planning.alerting import Alerting
from loraserve.planning.envelope import SLOT_STEPS, envelope_around, lora_flags
from loraserve.planning.extra_args import Levers, read_levers
from loraserve.planning.gpu_memory import GRAPH_SIZES, Serving, within_memory
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.known_models import DEFAULT_CHAT_TEMPLATES, KNOWN_MODELS
from loraserve.planning.model_shapes import ModelShape
from loraserve.planning.objectives import Objective
from loraserve.planning.pod_resources import adapters_in_memory
from loraserve.planning.remote_write import RemoteWrite
from loraserve.planning.vllm_parsers import REASONING_PARSERS, TOOL_CALL_PARSERS

MAX_VPC_PREFIX = 20
"""A smaller VPC leaves fewer than 1,024 addresses per zone."""
EMPTY_NODE_MINUTES = 2
OCI = "oci://"
"""How the address of charts in an image registry begins."""
LONGEST_BALANCER_IDLE_SECONDS = 4000
"""Of an application load balancer: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html."""
LONGEST_EVALUATED_NAME = 40
"""A CronJob's name has at most 52 characters, so that those of its Jobs have 63."""
_CRON = re.compile(r"@(hourly|daily|midnight|weekly|monthly)|([\d*,/A-Za-z-]+ ){4}[\d*,/A-Za-z-]+")
_STALL_MARGIN_SECONDS = 60
_SILENCE_MARGIN_SECONDS = 10
_INSTANCE_TYPES = "loraserve/planning/instance_types.py"


def _unique_adapters(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    check_names(adapters)
    return adapters


def _unique_keys(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    _refuse_duplicates([key.id for key in keys], "keys", "make a new one with `loraserve key`")
    return keys


def _unique_jobs(jobs: tuple[TrainingJob, ...]) -> tuple[TrainingJob, ...]:
    _refuse_duplicates([f"{job.model} {job.version}" for job in jobs], "jobs", "a version is trained once")
    return jobs


def _unique_access(entries: tuple[ClusterAccess, ...]) -> tuple[ClusterAccess, ...]:
    _refuse_duplicates([entry.principal_arn for entry in entries], "entries", "keep one per principal")
    _refuse_duplicates([entry.name for entry in entries], "entries", "give each a name of its own")
    return entries


def _unique_evaluations(evaluations: tuple[ClusterEvaluation, ...]) -> tuple[ClusterEvaluation, ...]:
    _refuse_duplicates([each.adapter for each in evaluations], "evaluations", "keep one for each adapter")
    return evaluations


def _refuse_duplicates(names: Sequence[str], what: str, fix: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two {what} have the name {', '.join(twice)}: {fix}")


def _known_namespaces(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise ValueError(f"{name!r} is no Kubernetes namespace: give lower-case letters, digits and inner hyphens")
    if SERVING_NAMESPACE in names:
        raise ValueError(
            f"{SERVING_NAMESPACE} is where the model runs, which no pod of it leaves: give the clients' own"
        )
    return names


def _certificate(arn: str | None) -> str | None:
    if arn and not re.fullmatch(r"arn:aws[a-z-]*:acm:[a-z0-9-]+:\d{12}:certificate/.+", arn):
        raise ValueError("give the ARN of an ACM certificate, or leave it empty for no load balancer")
    return arn


def _stack(name: str | None) -> str | None:
    if name and (problem := stack_name_problem(name)):
        raise ValueError(problem)
    return name


def _bucket_or_folder(state: str | None) -> str | None:
    if state and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.-]+)*", state):
        raise ValueError("give what follows s3:// in your `pulumi login`, such as acme-pulumi-state, or leave it empty")
    return state


def _cron(schedule: str | None) -> str | None:
    if schedule and not _CRON.fullmatch(schedule):
        raise ValueError("give cron's five fields (minute, hour, day, month, weekday; UTC), such as '0 3 * * 0'")
    return schedule


def _kms_key(arn: str | None) -> str | None:
    if arn and not re.fullmatch(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+", arn):
        raise ValueError("give the ARN of the key itself (…:key/…), not of its alias, or leave it empty")
    return arn


def _roomy_vpc(cidr: IPv4Network) -> IPv4Network:
    if not 16 <= cidr.prefixlen <= MAX_VPC_PREFIX or not cidr.is_private:
        raise ValueError(f"use a private range between /16 and /{MAX_VPC_PREFIX}, such as 10.0.0.0/16")
    return cidr


def _known_system_type(name: str) -> str:
    if name not in SYSTEM_INSTANCE_TYPES:
        raise ValueError(f"choose one of {', '.join(SYSTEM_INSTANCE_TYPES)}, or add its shape to {_INSTANCE_TYPES}")
    return name


def _known_gpu_type(name: str) -> str:
    if name not in GPU_INSTANCE_TYPES:
        why = "has no GPU" if name in SYSTEM_INSTANCE_TYPES else "is not a known instance type"
        raise ValueError(f"{why}; choose one of {', '.join(GPU_INSTANCE_TYPES)}, or add its shape to {_INSTANCE_TYPES}")
    return name


def _known_arguments(args: tuple[str, ...]) -> tuple[str, ...]:
    read_levers(args)
    return args


def _short_list(slots: int | None) -> int | None:
    if slots and slots not in SLOT_STEPS:
        listed = ", ".join(map(str, SLOT_STEPS))
        raise ValueError(
            f"vLLM compiles anew for each number: choose one of {listed}, 0 for no LoRA, or leave it empty"
        )
    return slots


def _with_one_gpu(name: str) -> str:
    if GPU_INSTANCE_TYPES[name].gpus > 1:
        single = [other.name for other in GPU_INSTANCE_TYPES.values() if other.gpus == 1]
        raise ValueError(f"a training uses one GPU: choose one of {', '.join(single)}")
    return name


def _readable_template(path: str | None) -> str | None:
    if path and not Path(path).is_file():
        raise ValueError("there is no such file; give a Jinja file's path relative to Pulumi.yaml, or leave it empty")
    return path


def _registered(parsers: Collection[str]) -> Callable[[str | None], str | None]:
    def check(name: str | None) -> str | None:
        if name and name not in parsers:
            raise ValueError(f"vLLM has no such parser; choose one of {', '.join(sorted(parsers))}, or leave it empty")
        return name

    return check


def _chart_address(address: str | None) -> str | None:
    if address and not re.fullmatch(rf"(https?://|{OCI})[^/\s]\S*", address):
        raise ValueError(
            "give the address of a Helm repository (https://…) or of a folder in an image registry (oci://…) that has all "
            "the charts, or leave it empty for the charts' own repositories"
        )
    return address and address.rstrip("/")


def _two_or_three_zones(zones: tuple[str, ...]) -> tuple[str, ...]:
    if zones and len(set(zones)) not in (2, 3):
        raise ValueError("name two or three different zones, or none to have them chosen")
    return zones


Text = Annotated[str, StringConstraints(min_length=1)]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: value or None)]
"""Pulumi.yaml cannot say 'no default': an empty text stands for none."""
Arn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:(role|user)/.+$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
Log = Literal["api", "audit", "authenticator", "controllerManager", "scheduler"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ClusterAccess(_Section):
    """Who may use the cluster's API, as an EKS access entry."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
    principal_arn: Arn
    policy: Literal["admin", "edit", "view"] = "view"


class Budget(_Section):
    """An AWS budget of the whole account, and whom it writes to."""

    dollars_per_month: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    emails: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$")], ...], Field(min_length=1, max_length=10)
    ]


class TrainingBase(_Section):
    """The weights that adapters are trained on, where those that serve are quantised: another id of the same model."""

    name: HubId
    revision: Text | None = None
    """Of the hub's; or else `mirror`, as `loraserve mirror` prints it."""
    mirror: Mirror | None = None

    @model_validator(mode="after")
    def _pinned_once(self) -> Self:
        if (self.revision is None) == (self.mirror is None):
            raise ValueError("give a revision, the full commit hash, or a mirror, one of the two")
        return self


class ClusterEvaluation(_Section):
    """An evaluation that runs in the cluster: by schedule, or whenever somebody makes a Job of it."""

    adapter: Annotated[AdapterName, StringConstraints(max_length=LONGEST_EVALUATED_NAME)]
    file: Text
    """Path of the evaluation, relative to Pulumi.yaml."""
    schedule: Annotated[OptionalText, AfterValidator(_cron)] = None
    """Cron's five fields, UTC; None: only when it is asked for."""


class TrainingJob(_Section):
    """An adapter that is trained in the cluster, once, and published."""

    name: AdapterName
    model: PathSegment
    version: PathSegment
    settings: Training
    """As in the file of `loraserve train`."""

    @field_validator("settings")
    @classmethod
    def _reachable(cls, settings: Training) -> Training:
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/.+", settings.rows):
            raise ValueError("rows: in the cluster they are read from S3: give s3://bucket/key")
        if settings.evaluations:
            raise ValueError(
                "evaluations: are files of yours: compare with `loraserve train --dry-run`, and leave them out here"
            )
        return settings

    @property
    def rows_arn(self) -> str:
        """What follows the partition."""
        return f"s3:::{self.settings.rows.removeprefix('s3://')}"


class TrainingGroup(_Section):
    """GPU nodes that are there while something is trained: at most one, of a type of its own."""

    instance_type: Annotated[str, AfterValidator(_known_gpu_type), AfterValidator(_with_one_gpu)] = "g6.xlarge"
    image: OptionalText = None
    """None: built by `up`."""
    jobs: Annotated[tuple[TrainingJob, ...], AfterValidator(_unique_jobs)] = ()

    @property
    def instance(self) -> GpuInstanceType:
        return GPU_INSTANCE_TYPES[self.instance_type]


class Local(_Section):
    """What one machine has in the place of the cloud; without it, everything is the cloud's."""

    vllm_device: Literal["gpu", "cpu"] = "gpu"
    """cpu: the image has vLLM's CPU build. The pod is placed by the same rules."""
    single_node: bool = False
    """There is one node for all pods, and it carries the GPU group's taint."""
    adapters_in_memory: Annotated[int, Field(ge=1)] | None = None
    """How many adapters vLLM keeps in memory, where the pod would have room for more."""
    aws_endpoint_url: Url | None = None
    """Address of an emulated AWS that pods use instead of the real one."""


class Settings(_Section):
    """Every configuration key of this program; `loraserve:gpuMaxSize` is `gpu_max_size`."""

    environment: Literal["development", "production"]
    deletion_protection: bool
    retain_adapters: bool

    cluster_stack: Annotated[OptionalText, AfterValidator(_stack)]
    vpc_cidr: Annotated[IPv4Network, AfterValidator(_roomy_vpc)]
    availability_zone_count: Annotated[int, Field(ge=2, le=3)]
    availability_zones: Annotated[tuple[str, ...], AfterValidator(_two_or_three_zones)] = ()
    nat: Literal["gateway", "gateway-per-zone", "instance"]
    publisher_role: bool
    state_bucket: Annotated[OptionalText, AfterValidator(_bucket_or_folder)]
    state_key_arn: Annotated[OptionalText, AfterValidator(_kms_key)]
    cluster_access: Annotated[tuple[ClusterAccess, ...], AfterValidator(_unique_access)] = ()
    public_access_cidrs: tuple[IPv4Network, ...] = ()
    private_access_cidrs: tuple[IPv4Network, ...] = ()
    control_plane_logs: tuple[Log, ...] = ("audit", "authenticator")

    system_instance_type: Annotated[str, AfterValidator(_known_system_type)]
    system_node_count: Annotated[int, Field(ge=1, le=10)]
    gpu_instance_type: Annotated[str, AfterValidator(_known_gpu_type)]
    gpu_min_size: Annotated[int, Field(ge=0)]
    gpu_max_size: Annotated[int, Field(ge=1)]
    gpu_idle_minutes: Annotated[int, Field(ge=1)]
    gpu_root_volume_gib: Annotated[int, Field(ge=100)]
    gpu_nvme_raid0: bool
    gpu_warm_pool: bool
    gpu_spot: bool

    base_model: Text
    base_model_revision: Text
    base_model_shape: ModelShape | None = None
    base_model_mirror: Mirror | None = None
    start_cache: StartCache | None = None
    start_cache_writer: bool
    accepted_base_ids: tuple[str, ...] = ()
    training_base: TrainingBase | None = None
    training: TrainingGroup | None = None
    max_model_len: Annotated[int, Field(ge=16)]
    gpu_memory_utilization: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(lambda value: value or None)
    ]
    adapter_slots: Annotated[
        Annotated[int, Field(ge=0)] | None,
        BeforeValidator(lambda value: None if value == "" else value),
        AfterValidator(_short_list),
    ]
    """0: no LoRA."""
    chat_template_file: Annotated[OptionalText, AfterValidator(_readable_template)]
    base_model_has_chat_template: bool
    tool_call_parser: Annotated[OptionalText, AfterValidator(_registered(TOOL_CALL_PARSERS))]
    reasoning_parser: Annotated[OptionalText, AfterValidator(_registered(REASONING_PARSERS))]
    vllm_extra_args: Annotated[tuple[str, ...], AfterValidator(_known_arguments)] = ()
    hub_token: SecretStr | None = None
    inference_replicas: Annotated[int, Field(ge=0)]
    longest_generation_seconds: Annotated[int, Field(ge=1)]
    startup_budget_minutes: Annotated[int, Field(ge=15)]
    scaling_enabled: bool
    inference_max_replicas: Annotated[int, Field(ge=1)]
    requests_per_replica: Annotated[int, Field(ge=1)]

    gateway_replicas: Annotated[int, Field(ge=2)]
    gateway_wait_seconds: Annotated[
        Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == "" else value)
    ]
    gpu_hours_per_day: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(lambda value: value or None)
    ]
    gateway_keys: Annotated[tuple[Key, ...], AfterValidator(_unique_keys)] = ()
    gateway_client_namespaces: Annotated[tuple[str, ...], AfterValidator(_known_namespaces)] = ()
    gateway_certificate_arn: Annotated[OptionalText, AfterValidator(_certificate)]

    adapters: Annotated[tuple[Adapter, ...], AfterValidator(_unique_adapters)] = ()

    evaluations: Annotated[tuple[ClusterEvaluation, ...], AfterValidator(_unique_evaluations)] = ()

    load_test: Annotated[
        Literal["phases", "tenants", "overload", "sweep"] | None, BeforeValidator(lambda value: value or None)
    ]

    budget: Budget | None = None

    objectives: dict[str, Objective] = {}
    """By model as callers name it; what is not named has `Objective()`."""
    alerting: Alerting = Alerting()
    remote_write: RemoteWrite | None = None

    log_format: Literal["text", "json"]

    addons_enabled: bool
    monitoring_enabled: bool
    prometheus_volume_gib: Annotated[int, Field(ge=0)]
    chart_repository: Annotated[OptionalText, AfterValidator(_chart_address)]
    vllm_image: OptionalText
    loraserve_image: OptionalText
    local: Local = Local()

    @property
    def kept_secret(self) -> dict[str, list[str]]:
        """What of structured settings may only stand encrypted in the stack file, by key."""
        password = self.remote_write and self.remote_write.password
        return {
            "alerting": list(self.alerting.secrets.values()),
            "remoteWrite": [password.get_secret_value()] if password else [],
        }

    @property
    def model_shape(self) -> ModelShape:
        """The base model's shape, declared or known."""
        return self.base_model_shape or KNOWN_MODELS[self.base_model].shape

    @property
    def weights_bytes(self) -> float:
        """Of the base model's files, on a pod's disk."""
        mirror = self.base_model_mirror
        return mirror.size_bytes if mirror else self.model_shape.weights_gib * 1024**3

    @property
    def base(self) -> Base:
        """What the agent and the gate know of the base model."""
        return Base(
            name=self.base_model,
            accepted_ids=self.accepted_base_ids,
            shape=self.model_shape.lora_shape,
            mirror=self.base_model_mirror,
            max_model_len=self.max_model_len,
            has_chat_template=self.chat_template is not None or self.base_model_has_chat_template,
        )

    @property
    def trained_on(self) -> TrainingBase:
        """What adapters are trained on: as declared or known, else what serves."""
        if self.training_base:
            return self.training_base
        known, mirror = KNOWN_MODELS.get(self.base_model), self.base_model_mirror
        if known and known.trained_as:
            return TrainingBase(name=known.trained_as, revision=known.trained_revision)
        return TrainingBase(name=self.base_model, mirror=mirror, revision=None if mirror else self.base_model_revision)

    @property
    def base_identity(self) -> BaseIdentity:
        """Which weights answer: the mirrored ones, else a revision of the hub's."""
        mirror = self.base_model_mirror
        revision = None if mirror else self.base_model_revision
        return BaseIdentity(name=self.base_model, revision=revision, mirror=mirror and mirror.digest)

    @property
    def chat_template(self) -> Path | None:
        """The Jinja file that vLLM is given; None: it uses the base model's own, if there is one."""
        return Path(self.chat_template_file) if self.chat_template_file else DEFAULT_CHAT_TEMPLATES.get(self.base_model)

    @property
    def gpu_instance(self) -> GpuInstanceType:
        """Shape of the GPU node group's instance type."""
        return GPU_INSTANCE_TYPES[self.gpu_instance_type]

    @property
    def instance_types(self) -> list[str]:
        """That its zones have to offer, each once."""
        training = [self.training.instance_type] if self.training else []
        return list(dict.fromkeys([self.gpu_instance_type, *training, self.system_instance_type]))

    @property
    def gpu_node_disk_gib(self) -> int:
        """What images and pods share on a GPU node."""
        return self.gpu_instance.nvme_gb * 9 // 10 if self.gpu_nvme_raid0 else self.gpu_root_volume_gib

    @property
    def most_system_nodes(self) -> int:
        """One more than there are, for an update that replaces them."""
        return self.system_node_count + 1

    @property
    def most_replicas(self) -> int:
        """vLLM replicas that there may be at once, but for a rolling update."""
        return max(self.inference_replicas, self.inference_max_replicas if self.scaling_enabled else 0)

    @property
    def node_idle_minutes(self) -> int:
        """How long the Cluster Autoscaler keeps an empty GPU node, after the time that KEDA keeps an idle pod on it."""
        if self.local.single_node:
            return 0
        return min(EMPTY_NODE_MINUTES, self.gpu_idle_minutes) if self.scaling_enabled else self.gpu_idle_minutes

    @property
    def hold_seconds(self) -> int:
        """How long the gateway holds a request while the model wakes."""
        return self.gateway_wait_seconds or cold_start.HOLD_SECONDS

    @property
    def replica_hours_per_day(self) -> float | None:
        """`gpu_hours_per_day` in hours of a pod."""
        return self.gpu_hours_per_day and self.gpu_hours_per_day / self.gpu_instance.gpus

    @property
    def stall_seconds(self) -> int:
        """vLLM may be silent for so long: a whole answer is until it is complete, and may have queued."""
        return self.longest_generation_seconds + _STALL_MARGIN_SECONDS

    @property
    def balancer_idle_seconds(self) -> int:
        """Longer than the gateway ever is silent: a request is held, then its whole answer is generated."""
        return self.hold_seconds + self.stall_seconds + _SILENCE_MARGIN_SECONDS

    @property
    def needs_volume_driver(self) -> bool:
        """Whether anything in the cluster asks for an EBS volume."""
        return self.monitoring_enabled and self.prometheus_volume_gib > 0 and not self.cluster_stack

    @property
    def levers(self) -> Levers:
        """How vLLM batches and caches."""
        return read_levers(self.vllm_extra_args)

    @property
    def serving(self) -> Serving:
        """What the GPU's memory is planned for."""
        levers = self.levers
        serving = Serving(
            max_num_seqs=levers.max_num_seqs,
            max_num_batched_tokens=levers.max_num_batched_tokens,
            specialize_active_lora=levers.specialize_active_lora,
            model=self.model_shape,
            instance=self.gpu_instance,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            envelope=envelope_around(self.adapters, self.adapter_slots),
        )
        return within_memory(serving) if self.adapter_slots is None else serving

    @property
    def envelope(self) -> Envelope | None:
        """What vLLM can hold of the declared adapters."""
        return self.serving.envelope

    @property
    def memory_flags(self) -> list[str]:
        """vLLM's start-up flags for the GPUs: how many there are, and what it may take of each."""
        gpus = self.gpu_instance.gpus
        graphs = json.dumps({"cudagraph_capture_sizes": GRAPH_SIZES})
        return [
            f"--gpu-memory-utilization={self.serving.utilization}",
            f"--compilation-config={graphs}",
            *([f"--tensor-parallel-size={gpus}"] if gpus > 1 else []),
        ]

    @property
    def adapters_held(self) -> int | None:
        """How many adapters vLLM keeps in memory, which others replace when requests ask for them; None without LoRA."""
        if not (envelope := self.envelope):
            return None
        in_memory = self.local.adapters_in_memory or adapters_in_memory(self.model_shape, envelope, self.gpu_instance)
        return max(envelope.slots, in_memory)

    @property
    def lora_flags(self) -> list[str]:
        """vLLM's start-up flags for its adapters."""
        envelope, held = self.envelope, self.adapters_held
        return lora_flags(envelope, held) if envelope and held else []
