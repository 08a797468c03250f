"""The agent's container, a native sidecar: it starts before vLLM, which waits for its start-up probe, and stops after it."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.iam import PodIdentity, token_mount, token_volume
from infra.names import (
    ADAPTER_DIR,
    ADAPTERS_VOLUME,
    AGENT_PORT,
    BASE_DIR,
    BASE_VOLUME,
    CACHE_DIR,
    CACHE_VOLUME,
    DESIRED_STATE,
    DESIRED_STATE_DIR,
    DESIRED_STATE_FILE,
    METRICS_PORT_NAME,
    TMP_VOLUME,
    VLLM_API_KEY,
    VLLM_PORT,
)
from infra.pods import api_credentials, environment, hardened, of_pod, of_secret, probe
from infra.vllm_container import base_folder, start_cache_version
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.environment import CREDENTIALS_DIR
from loraserve.planning import pod_resources
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_API_VOLUME = "kubernetes-api"
_DESIRED_STATE_VOLUME = "desired-state"


def agent_container(
    settings: Settings, *, image: pulumi.Input[str], secret: pulumi.Input[str], identity: PodIdentity
) -> core.ContainerArgsDict:
    """`secret` names the Secret that holds vLLM's key."""
    mirrored, on_cpu = bool(settings.base_model_mirror), settings.local.vllm_device == "cpu"
    return {
        "name": "agent",
        "image": image,
        "args": ["agent"],
        "restart_policy": "Always",
        "env": environment(_variables(settings, secret) | identity.variables(settings.local.aws_endpoint_url)),
        "ports": [{"name": METRICS_PORT_NAME, "container_port": AGENT_PORT}],
        "startup_probe": probe("/startupz", AGENT_PORT, period=1, failures=settings.startup_budget_minutes * 60),
        "liveness_probe": probe("/livez", AGENT_PORT, period=10),
        "readiness_probe": probe("/readyz", AGENT_PORT, period=10),
        "resources": {
            "requests": pod_resources.AGENT_REQUESTS.quantities(),
            "limits": pod_resources.AGENT_LIMITS.quantities(),
        },
        "security_context": hardened(),
        "volume_mounts": [
            {"name": _DESIRED_STATE_VOLUME, "mount_path": DESIRED_STATE_DIR, "read_only": True},
            {"name": ADAPTERS_VOLUME, "mount_path": ADAPTER_DIR},
            *([{"name": BASE_VOLUME, "mount_path": BASE_DIR}] if mirrored else []),
            *([] if on_cpu else [{"name": CACHE_VOLUME, "mount_path": CACHE_DIR}]),
            {"name": TMP_VOLUME, "mount_path": "/tmp", "sub_path": "agent"},
            token_mount(),
            {"name": _API_VOLUME, "mount_path": str(CREDENTIALS_DIR), "read_only": True},
        ],
    }


def agent_volumes(desired_state: pulumi.Input[str]) -> list[core.VolumeArgsDict]:
    """What only the agent mounts; `desired_state` names the ConfigMap that it follows."""
    return [
        {"name": _DESIRED_STATE_VOLUME, "config_map": {"name": desired_state}},
        token_volume(),
        {"name": _API_VOLUME, "projected": {"sources": api_credentials()}},
    ]


def _variables(settings: Settings, secret: pulumi.Input[str]) -> dict[str, Any]:
    compiles = start_cache_version(settings)
    return AgentSettings.variables(
        desired_file=f"{DESIRED_STATE_DIR}/{DESIRED_STATE_FILE}",
        kubernetes_config_map=DESIRED_STATE,
        kubernetes_namespace=of_pod("metadata.namespace"),
        kubernetes_pod_name=of_pod("metadata.name"),
        kubernetes_pod_uid=of_pod("metadata.uid"),
        adapter_dir=ADAPTER_DIR,
        base_folder=base_folder(settings),
        cache_dir=CACHE_DIR if compiles else None,
        start_cache_version=compiles,
        adapter_disk_bytes=settings.pod_disk.adapter_bytes,
        adapters_held=settings.adapters_held,
        port=AGENT_PORT,
        log_format=settings.log_format,
        # The document that it follows may be ahead of the vLLM beside it.
        envelope=settings.envelope,
        vllm_url=f"http://127.0.0.1:{VLLM_PORT}",
        vllm_api_key=of_secret(secret, VLLM_API_KEY),
    )
