"""vLLM in the cluster: one Deployment of the serving pod, its Service, its desired state, and what guards them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import pulumi_random as random

from infra.iam import PodIdentity
from infra.names import (
    AGENT_PORT,
    DESIRED_STATE,
    DESIRED_STATE_FILE,
    HUB_TOKEN,
    PROJECT,
    SERVING_SERVICE_ACCOUNT,
    VLLM,
    VLLM_API_KEY,
    VLLM_LABELS,
    VLLM_PORT,
    VLLM_SELECTOR,
    VLLM_SERVICE,
)
from infra.pods import grant, may_watch, service_ports
from infra.serving_pod import Surroundings, serving_pod
from infra.vllm_container import vllm_files
from loraserve.contract.desired_state import DesiredState
from loraserve.planning.envelope import restart_reason
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_READY_MARGIN_MINUTES = 15
"""On top of the start-up budget: a GPU node has to be bought and the image pulled."""


def announce_restart(settings: Settings, last: Mapping[str, Any]) -> None:
    """Says in `preview` and `up` that vLLM will restart, and why, by comparing with the last update's outputs."""
    if "cluster" not in last or not (settings.scaling_enabled or settings.inference_replicas):
        return
    reasons = [
        restart_reason(last.get("envelope"), settings.envelope),
        argument_reason(last.get("vllmExtraArgs"), settings.vllm_extra_args),
    ]
    for reason in filter(None, reasons):
        pulumi.log.warn(f"this restarts vLLM: {reason}")


def argument_reason(before: Sequence[str] | None, now: Sequence[str]) -> str | None:
    """Why vLLM's arguments differ from those of the last update; None where they do not, or it is not known."""
    if before is None or sorted(before) == sorted(now):
        return None
    return f"vllmExtraArgs {' '.join(before) or 'none'} -> {' '.join(now) or 'none'}"


class Inference(pulumi.ComponentResource):
    """The serving Deployment and everything it needs in its namespace."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        identity: PodIdentity,
        loraserve_image: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Inference", name, None, opts)
        self._settings = settings
        self._namespace = namespace
        self._identity = identity
        self._child = pulumi.ResourceOptions(parent=self)
        service_account = identity.service_account(SERVING_SERVICE_ACCOUNT, namespace, self._child)
        self.api_key_secret = self._create_secret()
        desired_state = self._create_desired_state()
        self._let_the_agent_follow()
        files = vllm_files(settings)
        self.surroundings = surroundings = Surroundings(
            image=loraserve_image,
            identity=identity,
            secret=self.api_key_secret.metadata.name,
            desired_state=desired_state.metadata.name,
            files=self._create_files(files).metadata.name,
        )
        self.deployment = self._create_deployment(surroundings, _digest(files), service_account)
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
            data[HUB_TOKEN] = pulumi.Output.secret(self._settings.hub_token.get_secret_value())
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
                envelope=self._settings.envelope,
                start_cache=self._settings.start_cache,
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

    def _create_files(self, files: dict[str, str]) -> core.ConfigMap:
        return core.ConfigMap(
            "vllm-files",
            metadata={"name": "vllm-files", "namespace": self._namespace},
            data=files,
            opts=self._child,
        )

    def _create_deployment(
        self, surroundings: Surroundings, files_digest: str, service_account: core.ServiceAccount
    ) -> k8s.apps.v1.Deployment:
        settings = self._settings
        wait_minutes = settings.startup_budget_minutes + _READY_MARGIN_MINUTES
        return k8s.apps.v1.Deployment(
            VLLM,
            metadata={"name": VLLM, "namespace": self._namespace, "labels": VLLM_LABELS},
            spec={
                "replicas": settings.inference_replicas,
                "progress_deadline_seconds": wait_minutes * 60,
                "revision_history_limit": 3,
                "selector": {"match_labels": VLLM_SELECTOR},
                "strategy": {
                    "type": "RollingUpdate",
                    "rolling_update": _rolling_update(settings.most_replicas, settings.gpu_max_size),
                },
                "template": {
                    "metadata": {
                        "labels": VLLM_LABELS,
                        "annotations": {
                            # Only the agent speaks to AWS.
                            "eks.amazonaws.com/skip-containers": VLLM,
                            # vLLM reads them when it starts.
                            f"{PROJECT}/files": files_digest,
                        },
                    },
                    "spec": serving_pod(settings, surroundings),
                },
            },
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[service_account],
                custom_timeouts=pulumi.CustomTimeouts(create=f"{wait_minutes}m", update=f"{wait_minutes}m"),
                # The autoscaler owns the number of replicas.
                ignore_changes=["spec.replicas"] if settings.scaling_enabled else None,
            ),
        )

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


def _rolling_update(replicas: int, gpu_max_size: int) -> k8s.apps.v1.RollingUpdateDeploymentArgsDict:
    """Surge where a spare GPU node may be bought; otherwise make room first, or the update would wait for ever."""
    surge = gpu_max_size > replicas
    return {"max_surge": 1 if surge else 0, "max_unavailable": 0 if surge else 1}


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]
