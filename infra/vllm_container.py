"""vLLM's container: its start-up flags, its environment, the files beside it, and what it asks for. Pure."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pulumi
import pulumi_kubernetes as k8s

from infra import pinned_images
from infra.names import (
    ADAPTER_DIR,
    ADAPTERS_VOLUME,
    BASE_DIR,
    BASE_VOLUME,
    CACHE_DIR,
    CACHE_VOLUME,
    HTTP_PORT_NAME,
    HUB_TOKEN,
    TMP_VOLUME,
    VLLM,
    VLLM_API_KEY,
    VLLM_PORT,
)
from infra.pods import environment, hardened, of_secret, probe
from loraserve.planning import pod_resources, traces
from loraserve.planning.gpu_memory import beyond_the_share
from loraserve.planning.stack_settings import Settings
from loraserve.vllm_plugins import gpu_share, guard

core = k8s.core.v1

PRESTOP_SECONDS = 15
"""The endpoint leaves every kube-proxy before vLLM is told to stop."""
_MIB = 1024**2
_FILES_DIR = "/etc/vllm"
_TEMPLATE_FILE = "chat_template.jinja"
_GUARD_MODULE = "loraserve_guard"
"""Found, as the other modules of ours, through PYTHONPATH; where it is not found, vLLM does not start."""
_METRICS_MODULE = "loraserve_lora_metrics"
_SHARE_MODULE = "loraserve_gpu_share"
_PLUGINS = {
    "METADATA": "Metadata-Version: 2.1\nName: loraserve-vllm-plugins\nVersion: 1\n",
    "entry_points.txt": (
        f"[vllm.stat_logger_plugins]\nloraserve = {_METRICS_MODULE}:LoraMetrics\n"
        f"[vllm.general_plugins]\nloraserve = {_SHARE_MODULE}:{gpu_share.lower_share_where_needed.__name__}\n"
    ),
}
"""As an installed package announces them; vLLM takes our metrics in the place of its own."""
_PLUGINS_DIR = "loraserve_vllm_plugins-1.dist-info"
_NOT_COMPILED = (
    "--port",
    "--shutdown-timeout",
    "--scheduling-policy",
    "--middleware",
    "--chat-template",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "--reasoning-parser",
    "--max-cpu-loras",
    "--otlp-traces-endpoint",
)
"""Flags that change nothing of what is compiled."""
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # Its image has no compiler; without this, the first request for log-probabilities ends the engine.
    "TORCH_COMPILE_DISABLE": "1",
    # Threads that are bound to processors wait for each other without end where two vLLMs share these.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # a start takes a quarter of the CPU time (images/vllm-cpu/Containerfile)
}

_TRACES_ENVIRONMENT = {
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # by gRPC vLLM would use no TLS
    "OTEL_SERVICE_NAME": VLLM,
}


def vllm_container(settings: Settings, secret: pulumi.Input[str]) -> core.ContainerArgsDict:
    """`secret` names the Secret that holds vLLM's key, and the hub token where there is one."""
    on_cpu, mirrored = settings.local.vllm_device == "cpu", bool(settings.base_model_mirror)
    instance = settings.gpu_instance
    needs = pod_resources.ON_CPU if on_cpu else pod_resources.on_gpu(instance)
    disk = {"ephemeral-storage": f"{pod_resources.CPU_DISK_GIB if on_cpu else settings.pod_disk.pod_gib}Gi"}
    variables = {
        **(_CPU_ENVIRONMENT if on_cpu else _gpu_environment(instance.gpus)),
        gpu_share.SPARE_VARIABLE: str(beyond_the_share(settings.serving) // _MIB),
        **vllm_environment(lora=bool(settings.envelope), offline=mirrored),
        # The official image sets none: nothing of it is hidden.
        "PYTHONPATH": _FILES_DIR,
        "VLLM_API_KEY": of_secret(secret, VLLM_API_KEY),
        **(_TRACES_ENVIRONMENT if settings.traces_endpoint else {}),
        **({"HF_TOKEN": of_secret(secret, HUB_TOKEN)} if settings.hub_token else {}),
    }
    return {
        "name": VLLM,
        "image": _image(settings),
        "command": ["vllm", "serve"],
        "args": vllm_flags(settings),
        "env": environment(variables),
        "ports": [{"name": HTTP_PORT_NAME, "container_port": VLLM_PORT}],
        "startup_probe": probe("/health", VLLM_PORT, delay=30, period=10, failures=settings.startup_budget_minutes * 6),
        "liveness_probe": probe("/health", VLLM_PORT, delay=10, period=30),
        "readiness_probe": probe("/health", VLLM_PORT, delay=5, period=10),
        "lifecycle": {"pre_stop": {"sleep": {"seconds": PRESTOP_SECONDS}}},
        # Why it ended, such as a card with less free memory than planned, is told by `loraserve status`.
        "termination_message_policy": "FallbackToLogsOnError",
        "resources": {
            "requests": pod_resources.with_gpus(needs.requests, instance.gpus) | disk,
            "limits": pod_resources.with_gpus(needs.limits, instance.gpus),
        },
        "security_context": hardened(),
        "volume_mounts": [
            {"name": ADAPTERS_VOLUME, "mount_path": ADAPTER_DIR, "read_only": True},
            *([{"name": BASE_VOLUME, "mount_path": BASE_DIR, "read_only": True}] if mirrored else []),
            {"name": CACHE_VOLUME, "mount_path": CACHE_DIR},
            {"name": TMP_VOLUME, "mount_path": "/tmp", "sub_path": VLLM},
            {"name": "shared-memory", "mount_path": "/dev/shm"},
            {"name": "files", "mount_path": _FILES_DIR, "read_only": True},
        ],
    }


def start_cache_version(settings: Settings) -> str | None:
    """Names all that decides what vLLM compiles; None on the CPU build, which compiles nothing.

    vLLM's own key has more in it (`VllmConfig.compute_hash`, `envs.compile_factors`); what it does not know is a miss.
    """
    if settings.local.vllm_device == "cpu":
        return None
    flags = [flag for flag in vllm_flags(settings) if not flag.startswith(_NOT_COMPILED)]
    gpus = settings.gpu_instance
    decides = [_image(settings), gpus.gpu.product, flags, _gpu_environment(gpus.gpus)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _image(settings: Settings) -> str:
    return settings.vllm_image or pinned_images.pinned(pinned_images.VLLM)


def vllm_volumes(settings: Settings, files: pulumi.Input[str]) -> list[core.VolumeArgsDict]:
    """What only vLLM mounts; `files` names the ConfigMap of `vllm_files`."""
    base = 0 if settings.base_model_mirror else pod_resources.base_volume_gib(settings.weights_bytes)
    shared = pod_resources.shared_memory_gib(settings.gpu_instance.gpus)
    items: list[core.KeyToPathArgsDict] = [
        {"key": key, "path": f"{_PLUGINS_DIR}/{key}" if key in _PLUGINS else key} for key in vllm_files(settings)
    ]
    return [
        {"name": CACHE_VOLUME, "empty_dir": {"size_limit": f"{pod_resources.COMPILE_CACHE_GIB + base}Gi"}},
        {"name": "files", "config_map": {"name": files, "items": items}},
        {"name": "shared-memory", "empty_dir": {"medium": "Memory", "size_limit": f"{shared}Gi"}},
    ]


def vllm_files(settings: Settings) -> dict[str, str]:
    """Files beside vLLM: what guards its routes, bounds its metrics and fits its share to the card, and the chat template where
    the base model has none or another is wanted."""
    plugins = Path(guard.__file__).parent
    modules = {_GUARD_MODULE: "guard.py", _METRICS_MODULE: "lora_metrics.py", _SHARE_MODULE: "gpu_share.py"}
    files = {
        f"{name}.py": (plugins / source).read_text(encoding="utf-8") for name, source in modules.items()
    } | _PLUGINS
    if settings.chat_template:
        files[_TEMPLATE_FILE] = settings.chat_template.read_text(encoding="utf-8")
    return files


def vllm_flags(settings: Settings) -> list[str]:
    """vLLM's arguments: computed, so that an adapter inside the envelope changes none of them."""
    return [
        *_base_model(settings),
        f"--port={VLLM_PORT}",
        f"--max-model-len={settings.max_model_len}",
        *(["--dtype=bfloat16"] if settings.local.vllm_device == "cpu" else settings.memory_flags),
        *settings.levers.flags,
        "--scheduling-policy=priority",  # the gateway says which requests can wait
        f"--shutdown-timeout={settings.longest_generation_seconds}",
        f"--middleware={_GUARD_MODULE}.{guard.Guard.__name__}",
        *([f"--chat-template={_FILES_DIR}/{_TEMPLATE_FILE}"] if settings.chat_template else []),
        *(
            ["--enable-auto-tool-choice", f"--tool-call-parser={parser}"]
            if (parser := settings.tool_call_parser)
            else []
        ),
        *([f"--reasoning-parser={settings.reasoning_parser}"] if settings.reasoning_parser else []),
        *([f"--otlp-traces-endpoint={traces.traces_url(address)}"] if (address := settings.traces_endpoint) else []),
        *settings.lora_flags,
    ]


def _base_model(settings: Settings) -> list[str]:
    """Where vLLM finds the base model, its first argument; a mirrored one is served under the same name."""
    if folder := base_folder(settings):
        return [folder, f"--served-model-name={settings.base_model}"]
    return [
        settings.base_model,
        f"--revision={settings.base_model_revision}",
        f"--tokenizer-revision={settings.base_model_revision}",
    ]


def base_folder(settings: Settings) -> str | None:
    """Where the agent puts mirrored base weights; other weights have another folder, so a change replaces the pod."""
    mirror = settings.base_model_mirror
    return f"{BASE_DIR}/{mirror.folder_name}" if mirror else None


def _gpu_environment(gpus: int) -> dict[str, str]:
    """What makes a start shorter; docs/cold-start.md has how much."""
    return {
        # The official image has no compiled modules (vllm-project/vllm#55422), and its root cannot be written to.
        "PYTHONPYCACHEPREFIX": f"{CACHE_DIR}/pyc",
        # The size of the KV cache is measured once for each set of flags; another, or less free memory, measures anew.
        "VLLM_ENABLE_STARTUP_PLAN": "1",
        # The engine's process inherits all imports; where CUDA was touched before, vLLM spawns it all the same. Several
        # GPUs have further processes, which were not measured so.
        **({"VLLM_WORKER_MULTIPROC_METHOD": "fork"} if gpus == 1 else {}),
    }


def vllm_environment(*, lora: bool, offline: bool) -> dict[str, str]:
    """No telemetry; every path that vLLM, Triton, Inductor and the hub client write to lies on the cache volume."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        **({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if lora else {}),
        "HOME": f"{CACHE_DIR}/home",
        # PyTorch asks for the user's name, and an arbitrary user id has none.
        "USER": VLLM,
        "HF_HOME": f"{CACHE_DIR}/huggingface",
        "XDG_CACHE_HOME": f"{CACHE_DIR}/xdg",
        "XDG_CONFIG_HOME": f"{CACHE_DIR}/config",
        "VLLM_CACHE_ROOT": f"{CACHE_DIR}/vllm",
        "VLLM_CONFIG_ROOT": f"{CACHE_DIR}/config/vllm",
        "TRITON_CACHE_DIR": f"{CACHE_DIR}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_DIR}/inductor",
        "FLASHINFER_WORKSPACE_BASE": f"{CACHE_DIR}/flashinfer",
        "CUDA_CACHE_PATH": f"{CACHE_DIR}/cuda",
        "NUMBA_CACHE_DIR": f"{CACHE_DIR}/numba",
    }
