"""The stack's settings: every configuration key, typed and frozen, and what follows from them.

Defaults of scalar keys stand in Pulumi.yaml, those of structured keys here. What one value may be is in `setting_values.py`,
sections are in `setting_sections.py`, rules between keys in `settings_rules.py`; `settings_parser.py` makes a `Settings` of
configuration values, and reports what is wrong with them.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from loraserve.contract.base_model import Base, Mirror, StartCache
from loraserve.contract.desired_state import Adapter, Envelope, check_names
from loraserve.contract.evaluation import BaseIdentity
from loraserve.contract.keys import Key
from loraserve.planning import cold_start, holding
from loraserve.planning.alerting import Alerting
from loraserve.planning.envelope import envelope_around, lora_flags
from loraserve.planning.extra_args import Levers, read_levers
from loraserve.planning.gpu_memory import GRAPH_SIZES, Serving, within_memory
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.known_models import DEFAULT_CHAT_TEMPLATES, KNOWN_MODELS
from loraserve.planning.model_shapes import ModelShape
from loraserve.planning.objectives import Objective
from loraserve.planning.pod_resources import PodDisk, adapters_in_memory
from loraserve.planning.remote_write import RemoteWrite
from loraserve.planning.setting_sections import (
    Budget,
    ClusterAccess,
    ClusterEvaluation,
    Local,
    Section,
    TrainingBase,
    TrainingGroup,
)
from loraserve.planning.setting_values import (
    AdapterSlots,
    CertificateArn,
    ChartRepository,
    CollectorAddress,
    GpuInstanceTypeName,
    KmsKeyArn,
    Log,
    LogDays,
    Namespaces,
    OptionalHours,
    OptionalSeconds,
    OptionalShare,
    OptionalText,
    ReasoningParser,
    Scenario,
    StackName,
    StateLocation,
    SystemInstanceType,
    TemplateFile,
    Text,
    ToolCallParser,
    VllmArguments,
    VpcCidr,
    Zones,
    refuse_duplicates,
)

EMPTY_NODE_MINUTES = 2
_STALL_MARGIN_SECONDS = 60
_SILENCE_MARGIN_SECONDS = 10


def _unique_adapters(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    check_names(adapters)
    return adapters


def _unique_keys(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    refuse_duplicates([key.id for key in keys], "keys", "make a new one with `loraserve key`")
    return keys


def _unique_access(entries: tuple[ClusterAccess, ...]) -> tuple[ClusterAccess, ...]:
    refuse_duplicates([entry.principal_arn for entry in entries], "entries", "keep one per principal")
    refuse_duplicates([entry.name for entry in entries], "entries", "give each a name of its own")
    return entries


def _unique_evaluations(evaluations: tuple[ClusterEvaluation, ...]) -> tuple[ClusterEvaluation, ...]:
    refuse_duplicates([each.adapter for each in evaluations], "evaluations", "keep one for each adapter")
    return evaluations


class Settings(Section):
    """Every configuration key of this program; `loraserve:gpuMaxSize` is `gpu_max_size`."""

    environment: Literal["development", "production"]
    deletion_protection: bool
    retain_adapters: bool

    cluster_stack: StackName
    vpc_cidr: VpcCidr
    availability_zone_count: Annotated[int, Field(ge=2, le=3)]
    availability_zones: Zones = ()
    nat: Literal["gateway", "gateway-per-zone", "instance"]
    publisher_role: bool
    state_bucket: StateLocation
    state_key_arn: KmsKeyArn
    cluster_access: Annotated[tuple[ClusterAccess, ...], AfterValidator(_unique_access)] = ()
    public_access_cidrs: tuple[IPv4Network, ...] = ()
    private_access_cidrs: tuple[IPv4Network, ...] = ()
    control_plane_logs: tuple[Log, ...] = ("audit", "authenticator")

    system_instance_type: SystemInstanceType
    system_node_count: Annotated[int, Field(ge=1, le=10)]
    gpu_instance_type: GpuInstanceTypeName
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
    gpu_memory_utilization: OptionalShare
    adapter_slots: AdapterSlots
    """0: no LoRA."""
    chat_template_file: TemplateFile
    base_model_has_chat_template: bool
    tool_call_parser: ToolCallParser
    reasoning_parser: ReasoningParser
    vllm_extra_args: VllmArguments = ()
    hub_token: SecretStr | None = None
    inference_replicas: Annotated[int, Field(ge=0)]
    longest_generation_seconds: Annotated[int, Field(ge=1)]
    startup_budget_minutes: Annotated[int, Field(ge=15)]
    scaling_enabled: bool
    inference_max_replicas: Annotated[int, Field(ge=1)]
    requests_per_replica: Annotated[int, Field(ge=1)]

    gateway_replicas: Annotated[int, Field(ge=2)]
    gateway_wait_seconds: OptionalSeconds
    gpu_hours_per_day: OptionalHours
    gateway_keys: Annotated[tuple[Key, ...], AfterValidator(_unique_keys)] = ()
    gateway_client_namespaces: Namespaces = ()
    gateway_certificate_arn: CertificateArn

    adapters: Annotated[tuple[Adapter, ...], AfterValidator(_unique_adapters)] = ()

    evaluations: Annotated[tuple[ClusterEvaluation, ...], AfterValidator(_unique_evaluations)] = ()

    load_test: Scenario

    budget: Budget | None = None

    objectives: Annotated[dict[str, Objective], Field(default_factory=dict)]
    """By model as callers name it; what is not named has `Objective()`."""
    alerting: Alerting = Alerting()
    remote_write: RemoteWrite | None = None

    log_format: Literal["text", "json"]
    traces_endpoint: CollectorAddress
    pod_log_days: LogDays
    """0: logs stay on their node, and go with it."""

    addons_enabled: bool
    monitoring_enabled: bool
    prometheus_volume_gib: Annotated[int, Field(ge=0)]
    chart_repository: ChartRepository
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
    def pod_disk(self) -> PodDisk:
        """Of the serving pod."""
        return PodDisk(self.adapters, self.weights_bytes, self.gpu_node_disk_gib)

    @property
    def adapters_on_demand(self) -> int:
        """How many of the declared versions no pod holds before a request asks for them."""
        return holding.on_demand(self.adapters, self.adapters_held, self.pod_disk.adapter_bytes)

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
            envelope=envelope_around(self.adapters, self.adapter_slots, modules=self.model_shape.lora_shape.modules),
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
