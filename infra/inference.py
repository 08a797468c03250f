"""vLLM as Kubernetes objects: one Deployment, its Service, its desired state, and what guards them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pulumi
import pulumi_kubernetes as k8s
import pulumi_random as random

from infra.iam import AUDIENCE, ROLE_ANNOTATION, TOKEN_DIR, TOKEN_FILE, TOKEN_SECONDS, TOKEN_VOLUME
from infra.images import VLLM_IMAGE
from infra.names import (
    ADAPTER_DIR,
    AGENT_PORT,
    BASE_DIR,
    DESIRED_STATE,
    DESIRED_STATE_DIR,
    DESIRED_STATE_FILE,
    GPU_SELECTOR,
    GPU_TAINT,
    HTTP_PORT_NAME,
    METRICS_PORT_NAME,
    PROJECT,
    SERVING_SERVICE_ACCOUNT,
    VLLM,
    VLLM_API_KEY,
    VLLM_LABELS,
    VLLM_PORT,
    VLLM_SELECTOR,
    VLLM_SERVICE,
)
from infra.pods import environment, grant, hardened, may_watch, of_pod, of_secret, probe, run_as, service_ports
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.desired_state import DesiredState, Envelope
from loraserve.planning import pod_resources
from loraserve.planning.envelope import lora_flags
from loraserve.planning.gpu_memory import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS
from loraserve.planning.stack_settings import Settings
from loraserve.vllm_plugins import guard

core = k8s.core.v1

PRESTOP_SECONDS = 15
"""The endpoint leaves every kube-proxy before vLLM is told to stop."""
_GRACE_MARGIN_SECONDS = 15
_USER_ID = 1000
_CACHE_DIR = "/cache"
_FILES_DIR = "/etc/vllm"
_TEMPLATE_FILE = "chat_template.jinja"
_GUARD_MODULE = "loraserve_guard"
"""Imported from vLLM's working directory: `python3 -m` looks there first."""
_API_CREDENTIALS_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
_API_TOKEN_SECONDS = 3600
_HUB_TOKEN = "hub-token"
_READY_MARGIN_MINUTES = 15
"""On top of the start-up budget: a GPU node has to be bought and the image pulled."""
_SHARED_MEMORY_GIB = 1
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # Its image has no compiler; without this, the first request for log-probabilities ends the engine.
    "TORCH_COMPILE_DISABLE": "1",
    # Threads that are bound to processors wait for each other without end where two vLLMs share these.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def vllm_args(settings: Settings, envelope: Envelope | None) -> list[str]:
    """vLLM's start-up flags: computed, so that an adapter inside the envelope changes none of them."""
    return [
        *base_model_flags(settings),
        f"--port={VLLM_PORT}",
        f"--max-model-len={settings.max_model_len}",
        *_device_args(settings),
        f"--max-num-seqs={MAX_NUM_SEQS}",
        f"--max-num-batched-tokens={MAX_NUM_BATCHED_TOKENS}",
        f"--shutdown-timeout={settings.longest_generation_seconds}",
        f"--middleware={_GUARD_MODULE}.{guard.Guard.__name__}",
        *([f"--chat-template={_FILES_DIR}/{_TEMPLATE_FILE}"] if settings.chat_template_file else []),
        *(lora_flags(envelope) if envelope else []),
    ]


def _device_args(settings: Settings) -> list[str]:
    if settings.local.vllm_device == "cpu":
        return ["--dtype=bfloat16"]
    return [f"--gpu-memory-utilization={settings.gpu_memory_utilization}"]


def base_model_flags(settings: Settings) -> list[str]:
    """Where vLLM finds the base model; a mirrored one is served under the same name."""
    if folder := base_folder(settings):
        return [f"--model={folder}", f"--served-model-name={settings.base_model}"]
    return [
        f"--model={settings.base_model}",
        f"--revision={settings.base_model_revision}",
        f"--tokenizer-revision={settings.base_model_revision}",
    ]


def base_folder(settings: Settings) -> str | None:
    """Where the agent puts mirrored base weights; other weights have another folder, so a change replaces the pod."""
    mirror = settings.base_model_mirror
    return f"{BASE_DIR}/{mirror.folder_name}" if mirror else None


def vllm_environment(lora: bool, offline: bool = False) -> dict[str, str]:
    """No telemetry; every path that vLLM, Triton, Inductor and the hub client write to lies on the cache volume."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        **({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if lora else {}),
        "HOME": f"{_CACHE_DIR}/home",
        # PyTorch asks for the user's name, and an arbitrary user id has none.
        "USER": VLLM,
        "HF_HOME": f"{_CACHE_DIR}/huggingface",
        "XDG_CACHE_HOME": f"{_CACHE_DIR}/xdg",
        "XDG_CONFIG_HOME": f"{_CACHE_DIR}/config",
        "VLLM_CACHE_ROOT": f"{_CACHE_DIR}/vllm",
        "VLLM_CONFIG_ROOT": f"{_CACHE_DIR}/config/vllm",
        "TRITON_CACHE_DIR": f"{_CACHE_DIR}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{_CACHE_DIR}/inductor",
        "FLASHINFER_WORKSPACE_BASE": f"{_CACHE_DIR}/flashinfer",
        "CUDA_CACHE_PATH": f"{_CACHE_DIR}/cuda",
        "NUMBA_CACHE_DIR": f"{_CACHE_DIR}/numba",
    }


def vllm_files(settings: Settings) -> dict[str, str]:
    """Files beside vLLM: what guards its routes, and the chat template where one is configured."""
    files = {f"{_GUARD_MODULE}.py": Path(guard.__file__).read_text(encoding="utf-8")}
    if settings.chat_template_file:
        files[_TEMPLATE_FILE] = Path(settings.chat_template_file).read_text(encoding="utf-8")
    return files


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]


def rolling_update(replicas: int, gpu_max_size: int) -> k8s.apps.v1.RollingUpdateDeploymentArgsDict:
    """Surge where a spare GPU node may be bought; otherwise make room first, or the update would wait for ever."""
    surge = gpu_max_size > replicas
    return {"max_surge": 1 if surge else 0, "max_unavailable": 0 if surge else 1}


def grace_seconds(longest_generation_seconds: int) -> int:
    """Time a stopping pod has: leaving the Service, then the longest generation allowed."""
    return PRESTOP_SECONDS + longest_generation_seconds + _GRACE_MARGIN_SECONDS


@dataclass(frozen=True)
class ServingIdentity:
    """How the pod reads the catalog: bucket, role and region, written into the pod explicitly."""

    bucket: pulumi.Input[str]
    role_arn: pulumi.Input[str]
    region: str


class Inference(pulumi.ComponentResource):
    """The serving Deployment and everything it needs in its namespace."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        identity: ServingIdentity,
        loraserve_image: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Inference", name, None, opts)
        self._settings = settings
        self._envelope = settings.envelope
        self._namespace = namespace
        self._identity = identity
        self._image = loraserve_image
        self._child = pulumi.ResourceOptions(parent=self)
        service_account = core.ServiceAccount(
            SERVING_SERVICE_ACCOUNT,
            metadata={
                "name": SERVING_SERVICE_ACCOUNT,
                "namespace": namespace,
                "annotations": {ROLE_ANNOTATION: identity.role_arn},
            },
            automount_service_account_token=False,
            opts=self._child,
        )
        self.api_key_secret = self._create_secret()
        self._desired_state = self._create_desired_state()
        self._let_the_agent_follow()
        self._files = vllm_files(settings)
        self._files_map = self._create_files()
        self.deployment = self._create_deployment(service_account)
        self.service = self._create_service()
        k8s.policy.v1.PodDisruptionBudget(
            VLLM,
            metadata={"name": VLLM, "namespace": namespace},
            spec={"max_unavailable": 1, "selector": {"match_labels": VLLM_SELECTOR}},
            opts=self._child,
        )
        self.register_outputs({"service": self.service.metadata.name})

    def _create_secret(self) -> core.Secret:
        """vLLM's own API key, which also guards its adapter-loading API, and the hub token where there is one."""
        key = random.RandomPassword("vllm-api-key", length=48, special=False, opts=self._child)
        data: dict[str, pulumi.Input[str]] = {VLLM_API_KEY: key.result}
        if self._settings.hub_token:
            data[_HUB_TOKEN] = pulumi.Output.secret(self._settings.hub_token.get_secret_value())
        return core.Secret(
            VLLM, metadata={"name": VLLM, "namespace": self._namespace}, string_data=data, opts=self._child
        )

    def _create_desired_state(self) -> core.ConfigMap:
        document = pulumi.Output.from_input(self._identity.bucket).apply(
            lambda bucket: DesiredState(
                base=self._settings.base,
                bucket=bucket,
                region=self._identity.region,
                adapters=self._settings.adapters,
                envelope=self._envelope,
            ).to_json()
        )
        return core.ConfigMap(
            DESIRED_STATE,
            metadata={"name": DESIRED_STATE, "namespace": self._namespace},
            data={DESIRED_STATE_FILE: document},
            opts=self._child,
        )

    def _let_the_agent_follow(self) -> None:
        """The object can be read sooner than its mounted copy changes; nothing else of the API is open to the pod."""
        grant(
            "desired-state-follower",
            {"name": "desired-state-follower", "namespace": self._namespace},
            SERVING_SERVICE_ACCOUNT,
            [
                may_watch("", "configmaps", DESIRED_STATE),
                {"api_groups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
            ],
            self._child,
        )

    def _create_files(self) -> core.ConfigMap:
        return core.ConfigMap(
            "vllm-files",
            metadata={"name": "vllm-files", "namespace": self._namespace},
            data=self._files,
            opts=self._child,
        )

    def _create_deployment(self, service_account: core.ServiceAccount) -> k8s.apps.v1.Deployment:
        settings = self._settings
        wait = f"{settings.startup_budget_minutes + _READY_MARGIN_MINUTES}m"
        return k8s.apps.v1.Deployment(
            VLLM,
            metadata={"name": VLLM, "namespace": self._namespace, "labels": VLLM_LABELS},
            spec={
                "replicas": settings.inference_replicas,
                "progress_deadline_seconds": (settings.startup_budget_minutes + _READY_MARGIN_MINUTES) * 60,
                "revision_history_limit": 3,
                "selector": {"match_labels": VLLM_SELECTOR},
                "strategy": {
                    "type": "RollingUpdate",
                    "rolling_update": rolling_update(settings.most_replicas, settings.gpu_max_size),
                },
                "template": {
                    "metadata": {
                        "labels": VLLM_LABELS,
                        "annotations": {
                            # Only the agent speaks to AWS.
                            "eks.amazonaws.com/skip-containers": VLLM,
                            # vLLM reads them when it starts.
                            f"{PROJECT}/files": _digest(self._files),
                        },
                    },
                    "spec": self._pod_spec(),
                },
            },
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[service_account],
                custom_timeouts=pulumi.CustomTimeouts(create=wait, update=wait),
                # The autoscaler owns the number of replicas.
                ignore_changes=["spec.replicas"] if settings.scaling_enabled else None,
            ),
        )

    def _pod_spec(self) -> core.PodSpecArgsDict:
        return {
            "service_account_name": SERVING_SERVICE_ACCOUNT,
            "automount_service_account_token": False,
            "enable_service_links": False,
            "node_selector": GPU_SELECTOR,
            "tolerations": [cast(core.TolerationArgsDict, GPU_TAINT.toleration())],
            "termination_grace_period_seconds": grace_seconds(self._settings.longest_generation_seconds),
            "security_context": run_as(_USER_ID),
            "init_containers": [self._agent_container()],
            "containers": [self._vllm_container()],
            "volumes": self._volumes(),
        }

    def _agent_container(self) -> core.ContainerArgsDict:
        """A native sidecar: it starts before vLLM, which waits for its start-up probe, and stops after it."""
        base = base_folder(self._settings)
        return {
            "name": "agent",
            "image": self._image,
            "args": ["agent"],
            "restart_policy": "Always",
            "env": environment(self._agent_variables(base)),
            "ports": [{"name": METRICS_PORT_NAME, "container_port": AGENT_PORT}],
            "startup_probe": probe(
                "/startupz", AGENT_PORT, period=1, failures=self._settings.startup_budget_minutes * 60
            ),
            "liveness_probe": probe("/livez", AGENT_PORT, period=10),
            "readiness_probe": probe("/readyz", AGENT_PORT, period=10),
            "resources": _resources(pod_resources.AGENT_REQUESTS.quantities(), pod_resources.AGENT_LIMITS.quantities()),
            "security_context": hardened(),
            "volume_mounts": [
                {"name": "desired-state", "mount_path": DESIRED_STATE_DIR, "read_only": True},
                {"name": "adapters", "mount_path": ADAPTER_DIR},
                *([{"name": "base", "mount_path": BASE_DIR}] if base else []),
                {"name": "tmp", "mount_path": "/tmp", "sub_path": "agent"},
                {"name": TOKEN_VOLUME, "mount_path": TOKEN_DIR, "read_only": True},
                {"name": "kubernetes-api", "mount_path": _API_CREDENTIALS_DIR, "read_only": True},
            ],
        }

    def _agent_variables(self, base: str | None) -> dict[str, Any]:
        return {
            **AgentSettings.variables(
                desired_file=f"{DESIRED_STATE_DIR}/{DESIRED_STATE_FILE}",
                kubernetes_config_map=DESIRED_STATE,
                kubernetes_namespace=of_pod("metadata.namespace"),
                kubernetes_pod_name=of_pod("metadata.name"),
                kubernetes_pod_uid=of_pod("metadata.uid"),
                adapter_dir=ADAPTER_DIR,
                base_folder=base,
                adapter_disk_bytes=pod_resources.ADAPTER_DISK_BYTES,
                port=AGENT_PORT,
                # The document that it follows may be ahead of the vLLM beside it.
                envelope=self._envelope,
                vllm_url=f"http://127.0.0.1:{VLLM_PORT}",
                vllm_api_key=self._of_secret(VLLM_API_KEY),
            ),
            "AWS_ROLE_ARN": self._identity.role_arn,
            "AWS_WEB_IDENTITY_TOKEN_FILE": f"{TOKEN_DIR}/{TOKEN_FILE}",
            "AWS_REGION": self._identity.region,
            # boto3 reads only this one.
            "AWS_DEFAULT_REGION": self._identity.region,
            "AWS_STS_REGIONAL_ENDPOINTS": "regional",
            **({"AWS_ENDPOINT_URL": url} if (url := self._settings.local.aws_endpoint_url) else {}),
        }

    def _vllm_container(self) -> core.ContainerArgsDict:
        settings, base = self._settings, base_folder(self._settings)
        variables = {
            **(_CPU_ENVIRONMENT if settings.local.vllm_device == "cpu" else {}),
            **vllm_environment(bool(self._envelope), offline=bool(base)),
            "VLLM_API_KEY": self._of_secret(VLLM_API_KEY),
            **({"HF_TOKEN": self._of_secret(_HUB_TOKEN)} if settings.hub_token else {}),
        }
        needs = pod_resources.ON_CPU if settings.local.vllm_device == "cpu" else pod_resources.ON_GPU
        disk = {"ephemeral-storage": f"{needs.disk_gib}Gi"}
        return {
            "name": VLLM,
            "image": settings.vllm_image or VLLM_IMAGE,
            "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
            "args": vllm_args(settings, self._envelope),
            "working_dir": _FILES_DIR,
            "env": environment(variables),
            "ports": [{"name": HTTP_PORT_NAME, "container_port": VLLM_PORT}],
            "startup_probe": probe(
                "/health", VLLM_PORT, delay=30, period=10, failures=settings.startup_budget_minutes * 6
            ),
            "liveness_probe": probe("/health", VLLM_PORT, delay=10, period=30),
            "readiness_probe": probe("/health", VLLM_PORT, delay=5, period=10),
            "lifecycle": {"pre_stop": {"sleep": {"seconds": PRESTOP_SECONDS}}},
            "resources": _resources(
                pod_resources.with_gpu(needs.requests) | disk,
                pod_resources.with_gpu(needs.limits),
            ),
            "security_context": hardened(),
            "volume_mounts": [
                {"name": "adapters", "mount_path": ADAPTER_DIR, "read_only": True},
                *([{"name": "base", "mount_path": BASE_DIR, "read_only": True}] if base else []),
                {"name": "cache", "mount_path": _CACHE_DIR},
                {"name": "tmp", "mount_path": "/tmp", "sub_path": VLLM},
                {"name": "shared-memory", "mount_path": "/dev/shm"},
                {"name": "files", "mount_path": _FILES_DIR, "read_only": True},
            ],
        }

    def _volumes(self) -> list[core.VolumeArgsDict]:
        token: core.ServiceAccountTokenProjectionArgsDict = {
            "audience": AUDIENCE,
            "expiration_seconds": TOKEN_SECONDS,
            "path": TOKEN_FILE,
        }
        mirrored = self._settings.base_model_mirror
        cache = pod_resources.MIRRORED_CACHE_VOLUME_GIB if mirrored else pod_resources.CACHE_VOLUME_GIB
        volumes: list[core.VolumeArgsDict] = [
            {"name": "desired-state", "config_map": {"name": self._desired_state.metadata.name}},
            {"name": "adapters", "empty_dir": {"size_limit": f"{pod_resources.ADAPTER_VOLUME_GIB}Gi"}},
            {"name": "cache", "empty_dir": {"size_limit": f"{cache}Gi"}},
            {"name": "tmp", "empty_dir": {}},
            {"name": "files", "config_map": {"name": self._files_map.metadata.name}},
            {"name": "shared-memory", "empty_dir": {"medium": "Memory", "size_limit": f"{_SHARED_MEMORY_GIB}Gi"}},
            {
                "name": TOKEN_VOLUME,
                "projected": {"sources": [{"service_account_token": token}]},
            },
            {"name": "kubernetes-api", "projected": {"sources": _api_credentials()}},
        ]
        if mirrored:
            volumes.append({"name": "base", "empty_dir": {"size_limit": f"{pod_resources.BASE_VOLUME_GIB}Gi"}})
        return volumes

    def _create_service(self) -> core.Service:
        return core.Service(
            VLLM_SERVICE,
            metadata={
                "name": VLLM_SERVICE,
                "namespace": self._namespace,
                "labels": VLLM_LABELS,
                # At zero replicas it has no endpoints, and that is not an error.
                "annotations": {"pulumi.com/skipAwait": "true"},
            },
            spec={
                "type": "ClusterIP",
                "selector": VLLM_SELECTOR,
                "ports": service_ports(http=VLLM_PORT, metrics=AGENT_PORT),
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self.deployment]),
        )

    def _of_secret(self, key: str) -> core.EnvVarSourceArgsDict:
        return of_secret(self.api_key_secret.metadata.name, key)


def _api_credentials() -> list[core.VolumeProjectionArgsDict]:
    """What Kubernetes would mount into every container, were it not switched off for the pod."""
    return [
        {"service_account_token": {"expiration_seconds": _API_TOKEN_SECONDS, "path": "token"}},
        {"config_map": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]


def _resources(requests: dict[str, str], limits: dict[str, str]) -> core.ResourceRequirementsArgsDict:
    return {"requests": requests, "limits": limits}
