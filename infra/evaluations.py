"""Evaluations in the cluster: a CronJob for each, whose verdicts lie in the bucket. One without a schedule is suspended:
`kubectl create job NAME --from=cronjob/evaluation-ADAPTER` starts it.
"""

from __future__ import annotations

from pathlib import Path

import pulumi
import pulumi_kubernetes as k8s

from infra import evaluation_files
from infra.client_jobs import client_pod, client_variables, cron_job, key_secret
from infra.iam import PodIdentity, token_mount, token_volume
from infra.names import (
    DESIRED_STATE,
    DESIRED_STATE_DIR,
    DESIRED_STATE_FILE,
    EVALUATOR,
    EVALUATOR_SELECTOR,
    TMP_VOLUME,
)
from infra.pods import environment, hardened
from loraserve.planning import pod_resources
from loraserve.planning.setting_sections import ClusterEvaluation
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_FOLDER = "/etc/loraserve-evaluation"
_RESULTS_GIB = 1
_ATTEMPTS_AFTER_THE_FIRST = 2
_LONGEST_SECONDS = 6 * 3600


class Evaluations(pulumi.ComponentResource):
    """Pods that ask as any client does, below interactive traffic, and may write verdicts."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        api_key: pulumi.Input[str],
        identity: PodIdentity,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Evaluations", name, None, opts)
        self._settings = settings
        self._namespace = namespace
        self._image = image
        self._identity = identity
        self._child = pulumi.ResourceOptions(parent=self)
        identity.service_account(EVALUATOR, namespace, self._child)
        self._secret = key_secret(EVALUATOR, namespace, api_key, self._child)
        for evaluation in settings.evaluations:
            self._create(evaluation)
        self.register_outputs({})

    def _create(self, evaluation: ClusterEvaluation) -> None:
        name = f"evaluation-{evaluation.adapter}"
        files = evaluation_files.read(evaluation)
        paths = {f"file-{number}": path for number, path in enumerate(files)}
        config_map = core.ConfigMap(
            name,
            metadata={"name": name, "namespace": self._namespace},
            data={key: files[path] for key, path in paths.items()},
            opts=self._child,
        )
        items: list[core.KeyToPathArgsDict] = [{"key": key, "path": path} for key, path in paths.items()]
        volume: core.VolumeArgsDict = {
            "name": "evaluation",
            "config_map": {"name": config_map.metadata.name, "items": items},
        }
        cron_job(
            name,
            self._namespace,
            EVALUATOR_SELECTOR,
            self._pod_spec(evaluation, volume),
            schedule=evaluation.schedule,
            attempts_after_the_first=_ATTEMPTS_AFTER_THE_FIRST,
            longest_seconds=_LONGEST_SECONDS,
            opts=self._child,
        )

    def _pod_spec(self, evaluation: ClusterEvaluation, files: core.VolumeArgsDict) -> core.PodSpecArgsDict:
        return client_pod(
            self._settings,
            {
                "service_account_name": EVALUATOR,
                "restart_policy": "OnFailure",  # in the same pod: what was answered is not asked again
                "containers": [self._container(evaluation)],
                "volumes": [
                    files,
                    {"name": DESIRED_STATE, "config_map": {"name": DESIRED_STATE}},
                    {"name": TMP_VOLUME, "empty_dir": {"size_limit": f"{_RESULTS_GIB}Gi"}},
                    token_volume(),
                ],
            },
        )

    def _container(self, evaluation: ClusterEvaluation) -> core.ContainerArgsDict:
        base = self._settings.base_identity
        revision = ["--base-revision", base.revision] if base.revision else []
        variables = client_variables(self._secret)
        return {
            "name": EVALUATOR,
            "image": self._image,
            "args": [
                "evaluate",
                f"{_FOLDER}/{Path(evaluation.file).name}",
                *("--candidate", evaluation.adapter),
                *("--desired-state", f"{DESIRED_STATE_DIR}/{DESIRED_STATE_FILE}"),
                *revision,
                *("--output", "/tmp/results"),
                *("--record", "--bucket", self._identity.bucket),
                "--no-gate",
            ],
            "env": environment(variables | self._identity.variables(self._settings.local.aws_endpoint_url)),
            "resources": {
                "requests": pod_resources.EVALUATOR_REQUESTS.quantities(),
                "limits": {"memory": f"{pod_resources.EVALUATOR_MEMORY_LIMIT_MIB}Mi"},
            },
            "security_context": hardened(),
            "volume_mounts": [
                {"name": "evaluation", "mount_path": _FOLDER, "read_only": True},
                {"name": DESIRED_STATE, "mount_path": DESIRED_STATE_DIR, "read_only": True},
                {"name": TMP_VOLUME, "mount_path": "/tmp"},
                token_mount(),
            ],
        }
