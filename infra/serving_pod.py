"""The serving pod: agent and vLLM, the volumes that they share, and where it runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pulumi
import pulumi_kubernetes as k8s

from infra.agent_container import agent_container, agent_volumes
from infra.iam import PodIdentity
from infra.names import (
    ADAPTERS_VOLUME,
    BASE_VOLUME,
    GPU_SELECTOR,
    GPU_TAINT,
    SERVING_SERVICE_ACCOUNT,
    TMP_VOLUME,
    with_suffix,
)
from infra.place import suffix
from infra.pods import run_as
from infra.vllm_container import PRESTOP_SECONDS, vllm_container, vllm_volumes
from loraserve.planning import pod_resources
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_GRACE_MARGIN_SECONDS = 15
_USER_ID = 10_001
"""Above 10,000: no user of the node, nor of the images, has it."""


@dataclass(frozen=True)
class Surroundings:
    """What the pod finds around it: our image, its AWS identity, and the names of what it mounts."""

    image: pulumi.Input[str]
    identity: PodIdentity
    secret: pulumi.Input[str]
    desired_state: pulumi.Input[str]
    files: pulumi.Input[str]


def serving_pod(settings: Settings, surroundings: Surroundings) -> core.PodSpecArgsDict:
    """What every replica is."""
    agent = agent_container(
        settings, image=surroundings.image, secret=surroundings.secret, identity=surroundings.identity
    )
    return {
        "service_account_name": SERVING_SERVICE_ACCOUNT,
        "automount_service_account_token": False,
        "enable_service_links": False,
        # One node for all pods is that of every stack.
        "node_selector": GPU_SELECTOR if settings.local.single_node else with_suffix(GPU_SELECTOR, suffix(settings)),
        "tolerations": [cast(core.TolerationArgsDict, GPU_TAINT.toleration())],
        "termination_grace_period_seconds": grace_seconds(settings.longest_generation_seconds),
        "security_context": run_as(_USER_ID),
        "init_containers": [agent],
        "containers": [vllm_container(settings, surroundings.secret)],
        "volumes": [
            *agent_volumes(surroundings.desired_state),
            *_shared_volumes(settings),
            *vllm_volumes(settings, surroundings.files),
        ],
    }


def _shared_volumes(settings: Settings) -> list[core.VolumeArgsDict]:
    base: core.VolumeArgsDict = {
        "name": BASE_VOLUME,
        "empty_dir": {"size_limit": f"{pod_resources.base_volume_gib(settings.weights_bytes)}Gi"},
    }
    adapters = settings.pod_disk.adapter_volume_gib
    return [
        {"name": ADAPTERS_VOLUME, "empty_dir": {"size_limit": f"{adapters}Gi"}},
        *([base] if settings.base_model_mirror else []),
        {"name": TMP_VOLUME, "empty_dir": {"size_limit": f"{pod_resources.TMP_VOLUME_GIB}Gi"}},
    ]


def grace_seconds(longest_generation_seconds: int) -> int:
    """Time a stopping pod has: leaving the Service, then the longest generation allowed."""
    return PRESTOP_SECONDS + longest_generation_seconds + _GRACE_MARGIN_SECONDS
