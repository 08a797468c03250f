"""One Job that starts vLLM as every replica starts it, and publishes what it has compiled. Off but for the `up` that wants it.

Nobody talks to its vLLM, so nothing but the image, the flags and the declared adapters decides what it compiles.
"""

from __future__ import annotations

from typing import Any, cast

import pulumi
import pulumi_kubernetes as k8s

from infra import iam
from infra.iam import PodIdentity, token_mount
from infra.names import (
    CACHE_DIR,
    CACHE_VOLUME,
    CATALOG_PREFIXES,
    DESIRED_STATE,
    START_CACHE_PREFIX,
    START_CACHE_WRITER,
    START_CACHE_WRITER_LABELS,
    TMP_VOLUME,
    VLLM,
    VLLM_API_KEY,
)
from infra.pods import environment, grant, hardened, may_watch, of_secret
from infra.serving_pod import Surroundings, serving_pod
from infra.vllm_container import start_cache_version
from loraserve.contract.start_cache_settings import StartCacheSettings
from loraserve.planning import pod_resources
from loraserve.planning.gpu_memory import GRAPH_SIZES
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_NODE_MINUTES = 15
"""On top of the start-up budget: a GPU node has to be bought and the image pulled."""
_WRITER = "writer"


def announce_start_cache(settings: Settings) -> None:
    """Says in `preview` and `up` that starts will compile anew."""
    compiles, declared = start_cache_version(settings), settings.start_cache
    if compiles and declared and declared.version != compiles and not settings.start_cache_writer:
        pulumi.log.warn(
            f"startCache was written for {declared.version}, and this vLLM compiles {compiles}: starts take some two minutes longer until "
            "startCacheWriter has written another (docs/cold-start.md)"
        )


def writer_policy(bucket_arn: str) -> str:
    """What the agent reads, and adding start caches."""
    prefixes = (*CATALOG_PREFIXES, START_CACHE_PREFIX)
    return iam.policy(
        # All of it: S3 tells 'not there' from 'not allowed' only to who may list, without a condition on the prefix.
        {"Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket_arn},
        {
            "Sid": "Read",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [f"{bucket_arn}/{prefix}/*" for prefix in prefixes],
        },
        {
            "Sid": "AddStartCaches",
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": f"{bucket_arn}/{START_CACHE_PREFIX}/*",
        },
    )


class StartCacheWriter(pulumi.ComponentResource):
    """The Job, its service account and what that may do."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        surroundings: Surroundings,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:StartCacheWriter", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        metadata: k8s.meta.v1.ObjectMetaArgsDict = {"name": START_CACHE_WRITER, "namespace": namespace}
        account = surroundings.identity.service_account(START_CACHE_WRITER, namespace, child)
        grant(START_CACHE_WRITER, metadata, START_CACHE_WRITER, [may_watch("", "configmaps", DESIRED_STATE)], child)
        k8s.batch.v1.Job(
            START_CACHE_WRITER,
            # `up` does not wait for it: its log has the entry for the stack file.
            metadata={**metadata, "annotations": {"pulumi.com/skipAwait": "true"}},
            spec={
                "backoff_limit": 1,
                "active_deadline_seconds": (settings.startup_budget_minutes + _NODE_MINUTES) * 60,
                "template": {
                    "metadata": {
                        "labels": START_CACHE_WRITER_LABELS,
                        "annotations": {"eks.amazonaws.com/skip-containers": VLLM},
                    },
                    "spec": writer_pod(settings, surroundings),
                },
            },
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[account], delete_before_replace=True, replace_on_changes=["spec"]
            ),
        )
        self.register_outputs({})


def writer_pod(settings: Settings, surroundings: Surroundings) -> core.PodSpecArgsDict:
    """The serving pod, with vLLM as a second sidecar of a container that ends."""
    pod = cast(dict[str, Any], serving_pod(settings, surroundings))
    (agent,), (vllm,) = pod["init_containers"], pod["containers"]
    # It compiles anew, whatever start cache there is.
    agent["env"] = [variable for variable in agent["env"] if variable["name"] != "AGENT_START_CACHE_VERSION"]
    return cast(
        core.PodSpecArgsDict,
        pod
        | {
            "service_account_name": START_CACHE_WRITER,
            "restart_policy": "Never",
            "init_containers": [agent, vllm | {"restart_policy": "Always"}],
            "containers": [_writer(settings, surroundings)],
        },
    )


def _writer(settings: Settings, surroundings: Surroundings) -> core.ContainerArgsDict:
    identity: PodIdentity = surroundings.identity
    told = StartCacheSettings.variables(
        bucket=identity.bucket,
        version=start_cache_version(settings),
        dir=CACHE_DIR,
        # With the words of its answer it fits the context.
        prompt_tokens=min(2 * GRAPH_SIZES[-1], settings.max_model_len // 2),
        vllm_api_key=of_secret(surroundings.secret, VLLM_API_KEY),
        log_format=settings.log_format,
    )
    return {
        "name": _WRITER,
        "image": surroundings.image,
        "args": [START_CACHE_WRITER],
        "env": environment(told | identity.variables(settings.local.aws_endpoint_url)),
        "resources": {
            "requests": pod_resources.AGENT_REQUESTS.quantities(),
            "limits": pod_resources.AGENT_LIMITS.quantities(),
        },
        "security_context": hardened(),
        "volume_mounts": [
            {"name": CACHE_VOLUME, "mount_path": CACHE_DIR, "read_only": True},
            {"name": TMP_VOLUME, "mount_path": "/tmp", "sub_path": _WRITER},
            token_mount(),
        ],
    }
