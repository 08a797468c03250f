"""Trainings in the cluster: a Job for each declared version, on a GPU node of its own group, with a role of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import pulumi
import pulumi_kubernetes as k8s

from infra import iam
from infra.iam import PodIdentity, token_mount, token_volume
from infra.names import (
    ADAPTER_PREFIX,
    BASE_MODEL_PREFIX,
    GPU_TAINT,
    HUB_TOKEN,
    LINEAGE_PREFIX,
    TRAINING,
    TRAINING_LABELS,
    TRAINING_SELECTOR,
    with_suffix,
)
from infra.pods import environment, hardened, of_secret, run_as
from loraserve.contract.addresses import TRAINING_PREFIX
from loraserve.planning import pod_resources
from loraserve.planning.setting_sections import TrainingGroup, TrainingJob
from loraserve.planning.stack_settings import Settings
from loraserve.planning.training_target import TrainingTarget

core = k8s.core.v1

_USER_ID = 10_001
_FILES_DIR, _WORK_DIR = "/etc/training", "/work"
_DEFINITION, _TARGET = "training.yaml", "target.json"
_RETRIES = 3
_LONGEST_SECONDS = 24 * 3600
_REFUSED = (1, 2)
"""Exit codes of `loraserve` that another attempt would end with as well."""


def training_policy(bucket_arn: str, jobs: Sequence[TrainingJob]) -> str:
    """What the Jobs do: read their rows and the base, keep checkpoints, publish their own versions and no others."""
    partition = bucket_arn.split(":")[1]
    published = [
        f"{bucket_arn}/{prefix}/{job.model}/{job.version}/*"
        for job in jobs
        for prefix in (ADAPTER_PREFIX, f"{LINEAGE_PREFIX}/{ADAPTER_PREFIX}")
    ]
    kept = f"{bucket_arn}/{TRAINING_PREFIX}/*"
    rows = sorted({f"arn:{partition}:{job.rows_arn}" for job in jobs})
    return iam.policy(
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": bucket_arn,
        },
        {
            "Sid": "Read",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [*rows, f"{bucket_arn}/{BASE_MODEL_PREFIX}/*", kept, *published],
        },
        {
            "Sid": "Write",
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": [kept, *published],
        },
    )


class Training(pulumi.ComponentResource):
    """Service account and Jobs. A Job that is there stays as it is: what it trains is a version, and made once."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        group: TrainingGroup,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        hub_secret: pulumi.Input[str],
        identity: PodIdentity,
        suffix: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Training", name, None, opts)
        self._settings, self._namespace, self._image = settings, namespace, image
        self._hub_secret, self._identity, self._suffix = hub_secret, identity, suffix
        self._child = pulumi.ResourceOptions(parent=self)
        account = identity.service_account(TRAINING, namespace, self._child)
        target = TrainingTarget.of(settings, group.instance_type).to_json()
        for job in group.jobs:
            self._create_job(job, target, account)
        self.register_outputs({})

    def _create_job(self, job: TrainingJob, target: str, account: core.ServiceAccount) -> None:
        name = job_name(job)
        files = core.ConfigMap(
            name,
            metadata={"name": name, "namespace": self._namespace},
            data={_DEFINITION: job.settings.model_dump_json(by_alias=True), _TARGET: target},
            opts=self._child,
        )
        k8s.batch.v1.Job(
            name,
            metadata={
                "name": name,
                "namespace": self._namespace,
                "labels": TRAINING_LABELS,
                # `up` does not wait for hours.
                "annotations": {"pulumi.com/skipAwait": "true"},
            },
            spec={
                "backoff_limit": _RETRIES,
                "active_deadline_seconds": _LONGEST_SECONDS,
                "pod_failure_policy": {
                    "rules": [
                        {"action": "Ignore", "on_pod_conditions": [{"type": "DisruptionTarget", "status": "True"}]},
                        {"action": "FailJob", "on_exit_codes": {"operator": "In", "values": list(_REFUSED)}},
                    ]
                },
                "template": {
                    "metadata": {
                        "labels": TRAINING_LABELS,
                        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                    },
                    "spec": self._pod(job, files.metadata.name),
                },
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[account], ignore_changes=["spec"]),
        )

    def _pod(self, job: TrainingJob, files: pulumi.Input[str]) -> core.PodSpecArgsDict:
        return {
            "service_account_name": TRAINING,
            "automount_service_account_token": False,
            "enable_service_links": False,
            "restart_policy": "Never",
            "node_selector": with_suffix(TRAINING_SELECTOR, self._suffix),
            "tolerations": [cast(core.TolerationArgsDict, GPU_TAINT.toleration())],
            "security_context": run_as(_USER_ID),
            "containers": [self._container(job)],
            "volumes": [
                {"name": "files", "config_map": {"name": files}},
                {"name": "work", "empty_dir": {"size_limit": f"{pod_resources.TRAINING_VOLUME_GIB}Gi"}},
                token_volume(),
            ],
        }

    def _container(self, job: TrainingJob) -> core.ContainerArgsDict:
        published = ["--model", job.model, "--version", job.version, "--name", job.name]
        disk = {"ephemeral-storage": f"{pod_resources.TRAINING_VOLUME_GIB}Gi"}
        return {
            "name": TRAINING,
            "image": self._image,
            "args": [
                "train",
                f"{_FILES_DIR}/{_DEFINITION}",
                f"--target={_FILES_DIR}/{_TARGET}",
                f"--output={_WORK_DIR}/run",
                pulumi.Output.concat("--bucket=", self._identity.bucket),
                "--keep-checkpoints",
                *published,
            ],
            "env": environment(self._variables()),
            "resources": {
                "requests": pod_resources.with_gpus(pod_resources.TRAINING_REQUESTS, 1) | disk,
                "limits": pod_resources.with_gpus(pod_resources.TRAINING_LIMITS, 1),
            },
            "security_context": hardened(),
            "volume_mounts": [
                {"name": "files", "mount_path": _FILES_DIR, "read_only": True},
                {"name": "work", "mount_path": _WORK_DIR},
                {"name": "work", "mount_path": "/tmp", "sub_path": "tmp"},
                token_mount(),
            ],
        }

    def _variables(self) -> dict[str, Any]:
        token = {"HF_TOKEN": of_secret(self._hub_secret, HUB_TOKEN)} if self._settings.hub_token else {}
        return {
            "HOME": f"{_WORK_DIR}/home",
            # PyTorch asks for the user's name, and an arbitrary user id has none.
            "USER": TRAINING,
            "HF_HOME": f"{_WORK_DIR}/huggingface",
            "DO_NOT_TRACK": "1",
            **token,
            **self._identity.variables(self._settings.local.aws_endpoint_url),
        }


def job_name(job: TrainingJob) -> str:
    """Versions may have capitals and dots, and names of Kubernetes not."""
    digest = hashlib.sha256(f"{job.model}/{job.version}".encode()).hexdigest()[:8]
    return f"{TRAINING}-{job.name[:40].rstrip('-')}-{digest}"
