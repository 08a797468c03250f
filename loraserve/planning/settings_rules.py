"""The rules between settings: what no single value can break. Pure; each yields what is wrong, with the fix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from pydantic.alias_generators import to_camel

from loraserve.contract.addresses import PROJECT
from loraserve.contract.document import is_hub_id
from loraserve.contract.keys import EVERY_MODEL
from loraserve.planning import gpu_memory, pod_resources
from loraserve.planning.known_models import KNOWN_MODELS
from loraserve.planning.model_shapes import ModelShape
from loraserve.planning.setting_sections import Local
from loraserve.planning.stack_settings import Settings
from loraserve.planning.training_memory import TrainingRun, training_problem

EMULATED_ACCOUNT = "123456789012"
"""The account that moto answers for; AWS has it in its documentation only."""
LEAST_SCALED_IDLE_MINUTES = 4
"""Less would end pods between two requests of one conversation."""
LONGEST_DRAIN_SECONDS = 570
"""The autoscaler gives the pods of a node 600 s to end, and half a minute goes to leaving the Service."""
_WIDEST_CIDR_IN_PRODUCTION = 16
_LONGEST_BALANCER_IDLE_SECONDS = 4000
"""Of an application load balancer: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html."""

Rule = Callable[[Settings], Iterator[str]]
RULES: list[Rule] = []


def _rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def local_beside_a_real_account(settings: Settings, allowed_accounts: Collection[str]) -> Iterator[str]:
    """Needs `aws:allowedAccountIds`, which is no setting of this program."""
    real = sorted(set(allowed_accounts) - {EMULATED_ACCOUNT})
    if settings.local != Local() and real:
        yield (
            f"{PROJECT}:local is for an emulated AWS, whose account is {EMULATED_ACCOUNT}, and aws:allowedAccountIds names "
            f"{', '.join(real)}: remove it from a stack file for the real AWS"
        )


@_rule
def own_image_by_digest(settings: Settings) -> Iterator[str]:
    group = settings.training
    for key, image in {"loraserveImage": settings.loraserve_image, "training.image": group and group.image}.items():
        if image and "@sha256:" not in image and not image.startswith("localhost/"):  # of this machine's own
            yield (
                f"{PROJECT}:{key} {image} names no digest, and a tag can be moved: write it as the output `image` of the "
                "stack that ran it, NAME@sha256:…"
            )


# Sizes.


@_rule
def gpu_group_bounds(settings: Settings) -> Iterator[str]:
    if settings.gpu_max_size < settings.gpu_min_size:
        yield (
            f"{PROJECT}:gpuMaxSize {settings.gpu_max_size} is below gpuMinSize {settings.gpu_min_size}: raise it to "
            f"{settings.gpu_min_size}, or lower gpuMinSize"
        )


@_rule
def a_node_for_each_replica(settings: Settings) -> Iterator[str]:
    most = settings.most_replicas
    if most > settings.gpu_max_size:
        key = "inferenceReplicas" if most == settings.inference_replicas else "inferenceMaxReplicas"
        yield (
            f"{PROJECT}:{key} {most} needs as many GPU nodes, and gpuMaxSize is {settings.gpu_max_size}: raise gpuMaxSize "
            f"(each node takes {settings.gpu_instance.vcpus} vCPUs of the {settings.gpu_instance.quota} quota)"
        )


@_rule
def time_between_requests(settings: Settings) -> Iterator[str]:
    scaled = settings.scaling_enabled and not settings.local.single_node
    if scaled and settings.gpu_idle_minutes < LEAST_SCALED_IDLE_MINUTES:
        yield (
            f"{PROJECT}:gpuIdleMinutes {settings.gpu_idle_minutes} leaves no time between two requests: set at least "
            f"{LEAST_SCALED_IDLE_MINUTES}, or scalingEnabled to false"
        )


@_rule
def disks_that_outlive_a_stop(settings: Settings) -> Iterator[str]:
    if settings.gpu_warm_pool and settings.gpu_nvme_raid0:
        yield (
            f"{PROJECT}:gpuWarmPool keeps stopped instances, and a stop wipes the NVMe disks of gpuNvmeRaid0: "
            "set one of the two to false"
        )


@_rule
def nvme_disks(settings: Settings) -> Iterator[str]:
    if settings.gpu_nvme_raid0 and not settings.gpu_instance.nvme_gb:
        yield f"{PROJECT}:gpuNvmeRaid0: {settings.gpu_instance_type} has no NVMe disks: set it to false"


@_rule
def silence_that_a_load_balancer_bears(settings: Settings) -> Iterator[str]:
    if settings.gateway_certificate_arn and settings.balancer_idle_seconds > _LONGEST_BALANCER_IDLE_SECONDS:
        yield (
            f"{PROJECT}:gatewayWaitSeconds {settings.hold_seconds} and longestGenerationSeconds "
            f"{settings.longest_generation_seconds} let an answer be silent for {settings.balancer_idle_seconds} s, and the load "
            f"balancer of gatewayCertificateArn cuts what is silent for {_LONGEST_BALANCER_IDLE_SECONDS} s: lower one of the two"
        )


@_rule
def a_node_in_the_volumes_zone(settings: Settings) -> Iterator[str]:
    zones = len(settings.availability_zones) or settings.availability_zone_count
    if settings.needs_volume_driver and settings.system_node_count < zones:
        yield (
            f"{PROJECT}:prometheusVolumeGib: a volume stays in its zone, and {settings.system_node_count} system node(s) in {zones} "
            f"zones may leave that one empty, where Prometheus would wait for ever: set systemNodeCount to {zones}, or "
            "prometheusVolumeGib to 0"
        )


# Safety.


_OF_THE_CLUSTER = (
    "cluster_access",
    "private_access_cidrs",
    "gateway_certificate_arn",
    "alerting",
    "remote_write",
    "objectives",
    "pod_log_days",
)
"""What a stack has for its whole cluster, or once in it."""


@_rule
def settings_of_a_cluster_of_ones_own(settings: Settings) -> Iterator[str]:
    """Those that would seem to be in force."""
    if not settings.cluster_stack:
        return
    chosen = {field: getattr(settings, field) for field in _OF_THE_CLUSTER}
    set_here = [
        to_camel(field) for field, value in chosen.items() if value and value != Settings.model_fields[field].default
    ]
    if set_here:
        yield (
            f"{PROJECT}:clusterStack {settings.cluster_stack}: {', '.join(set_here)} belong to the stack whose cluster it is: set "
            "them there, or remove clusterStack for a cluster of this stack's own"
        )


@_rule
def reachable_api(settings: Settings) -> Iterator[str]:
    if settings.cluster_stack:
        return
    if not settings.public_access_cidrs and not settings.private_access_cidrs:
        yield (
            f"{PROJECT}:publicAccessCidrs is empty, so nobody reaches the cluster's API, this program included: list your "
            "own address ranges, or keep it off and list the ranges of your VPN or bastion in privateAccessCidrs"
        )


@_rule
def closed_api_in_production(settings: Settings) -> Iterator[str]:
    wide = [str(cidr) for cidr in settings.public_access_cidrs if cidr.prefixlen < _WIDEST_CIDR_IN_PRODUCTION]
    wide = [] if settings.cluster_stack else wide
    if settings.environment == "production" and wide:
        yield (
            f"{PROJECT}:publicAccessCidrs opens the cluster's API to {', '.join(wide)}: list your own address ranges, "
            "or none and use privateAccessCidrs"
        )


@_rule
def pinned_weights_in_production(settings: Settings) -> Iterator[str]:
    pinned = settings.base_model_mirror or _is_commit(settings.base_model_revision)
    if settings.environment == "production" and not pinned:
        yield (
            f"{PROJECT}:baseModelRevision {settings.base_model_revision!r} moves: in production pin the full commit hash of "
            f"{settings.base_model} (shown by its hub under 'Files and versions', 'History'), or mirror it"
        )


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


@_rule
def keys_of_declared_models(settings: Settings) -> Iterator[str]:
    known = {EVERY_MODEL, settings.base_model, *(adapter.name for adapter in settings.adapters)}
    for key in settings.gateway_keys:
        if strangers := sorted(set(key.models) - known):
            yield (
                f"{PROJECT}:gatewayKeys: key {key.id} of {key.tenant} names {', '.join(strangers)}, which is not declared: "
                f"choose from {', '.join(sorted(known))}"
            )


@_rule
def one_limit_for_a_tenant(settings: Settings) -> Iterator[str]:
    """Its entries share it, and a client must not choose by its key."""
    for tenant in sorted({key.tenant for key in settings.gateway_keys}):
        entries = [key for key in settings.gateway_keys if key.tenant == tenant]
        for limit in ("requests_per_minute", "tokens_per_minute", "tokens_per_month"):
            if len({getattr(key, limit) for key in entries}) > 1:
                yield (
                    f"{PROJECT}:gatewayKeys: the keys of {tenant} have different {to_camel(limit)}, and a limit is the tenant's "
                    "over all its keys: give them the same one, or make two tenants of it"
                )


@_rule
def generations_that_a_drain_lets_finish(settings: Settings) -> Iterator[str]:
    if settings.longest_generation_seconds > LONGEST_DRAIN_SECONDS:
        yield (
            f"{PROJECT}:longestGenerationSeconds {settings.longest_generation_seconds} is more than a node that goes gives its "
            f"pods: generations would be cut; set {LONGEST_DRAIN_SECONDS} or less"
        )


@_rule
def objectives_of_declared_models(settings: Settings) -> Iterator[str]:
    """A misspelt name would leave its model with the default."""
    known = {settings.base_model, *(adapter.name for adapter in settings.adapters)}
    if strangers := sorted(settings.objectives.keys() - known):
        yield (
            f"{PROJECT}:objectives names {', '.join(strangers)}, which is not declared: choose from "
            f"{', '.join(sorted(known))}"
        )


@_rule
def evaluations_of_declared_adapters(settings: Settings) -> Iterator[str]:
    known = {adapter.name for adapter in settings.adapters}
    if strangers := sorted({each.adapter for each in settings.evaluations} - known):
        yield (
            f"{PROJECT}:evaluations names {', '.join(strangers)}, which is not declared: choose from "
            f"{', '.join(sorted(known)) or 'what loraserve:adapters will name'}"
        )


# The base model and its adapters, in memory and on disk.


@_rule
def known_shape(settings: Settings) -> Iterator[str]:
    if not _shape(settings):
        fields = ", ".join(to_camel(name) for name, field in ModelShape.model_fields.items() if field.is_required())
        yield (
            f"{PROJECT}:baseModelShape: nothing is known of {settings.base_model}: give {fields} from its config.json "
            "(weightsGib: the size of its weight files), as `loraserve base-model` prints them"
        )


@_rule
def start_cache_on_gpu(settings: Settings) -> Iterator[str]:
    if settings.start_cache_writer and settings.local.vllm_device == "cpu":
        yield f"{PROJECT}:startCacheWriter: the CPU build of vLLM compiles nothing: leave it false"


@_rule
def mirror_with_a_name(settings: Settings) -> Iterator[str]:
    if settings.base_model_mirror and not is_hub_id(settings.base_model):
        yield f"{PROJECT}:baseModelMirror: {settings.base_model!r} is no hub id: set baseModel to what was mirrored"


@_rule
def a_training_base_that_is_accepted(settings: Settings) -> Iterator[str]:
    base, accepted = settings.training_base, {settings.base_model, *settings.accepted_base_ids}
    if not base:
        return
    if settings.accepted_base_ids and base.name not in accepted:
        yield (
            f"{PROJECT}:trainingBase {base.name} is none of acceptedBaseIds, so what is trained on it could not be published: add it "
            "there if it means the same weights"
        )
    if base.revision and not _is_commit(base.revision):
        yield (
            f"{PROJECT}:trainingBase: revision {base.revision!r} moves: give the full commit hash of {base.name}, or mirror it"
        )


@_rule
def trainings_that_fit(settings: Settings) -> Iterator[str]:
    group, shape = settings.training, _shape(settings)
    if not group or not shape:
        return
    for job in group.jobs:
        if problem := training_problem(TrainingRun.of(job.settings, shape, group.instance_type)):
            yield f"{PROJECT}:training: {job.model} {job.version}: {problem.replace('gpuInstanceType', 'instanceType')}"
    base = settings.trained_on
    if group.jobs and base.revision and not _is_commit(base.revision):
        yield (
            f"{PROJECT}:training: {base.name} at {base.revision!r} moves: set trainingBase to a full commit hash or a mirror"
        )


@_rule
def the_base_models_name(settings: Settings) -> Iterator[str]:
    if any(adapter.name == settings.base_model for adapter in settings.adapters):
        yield f"{PROJECT}:adapters: {settings.base_model!r} is the base model's name: rename that adapter"


@_rule
def layers_of_the_base_model(settings: Settings) -> Iterator[str]:
    shape = _shape(settings)
    if shape and (strangers := _strange_modules(settings, shape)):
        yield (
            f"{PROJECT}:adapters: target modules {', '.join(strangers)} are not LoRA layers of {settings.base_model}: "
            f"train on some of {', '.join(shape.lora_shape.modules)}"
        )


@_rule
def memory_for_one_request(settings: Settings) -> Iterator[str]:
    shape = _shape(settings)
    if not shape or _strange_modules(settings, shape):
        return
    longest = shape.max_position_embeddings
    if longest and settings.max_model_len > longest:
        yield (
            f"{PROJECT}:maxModelLen {settings.max_model_len:,} is more than the {longest:,} that {settings.base_model} was "
            f"made for, and vLLM would not start: set it to {longest} or less"
        )
    else:
        yield from _told(gpu_memory.memory_problem(settings.serving))


@_rule
def a_node_that_fits_the_pod(settings: Settings) -> Iterator[str]:
    yield from _told(pod_resources.node_fit_problem(settings.gpu_instance))


@_rule
def disk_for_adapters_and_weights(settings: Settings) -> Iterator[str]:
    if _shape(settings):
        yield from _told(settings.pod_disk.problem())


def _shape(settings: Settings) -> ModelShape | None:
    known = KNOWN_MODELS.get(settings.base_model)
    return settings.base_model_shape or (known and known.shape)


def _strange_modules(settings: Settings, shape: ModelShape) -> list[str]:
    """Target modules that the base model has not."""
    touched = {module for adapter in settings.adapters for module in adapter.target_modules}
    return sorted(touched - shape.lora_shape.modules.keys())


def _told(problem: str | None) -> Iterator[str]:
    if problem:
        yield problem
