"""A load test from inside the cluster, where no port-forward stands between: `kubectl create job NAME --from=cronjob/load-test`
starts it, and its log ends with what it found.
"""

from __future__ import annotations

import json

import pulumi
import pulumi_kubernetes as k8s

from infra.client_jobs import client_pod, client_variables, cron_job, key_secret
from infra.names import LOAD_TEST, LOAD_TEST_SELECTOR, TMP_VOLUME
from infra.pods import environment, hardened
from loraserve.loadtest.prompts import retrieved_words_for
from loraserve.planning import pod_resources
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_FOLDER = "/etc/loraserve-load-test"
_OBJECTIVES = "objectives.json"
_LONGEST_SECONDS = 2 * 3600


class LoadTest(pulumi.ComponentResource):
    """A pod that asks as any client does, and reaches nothing else."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        scenario: str,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        api_key: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:LoadTest", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        metadata: k8s.meta.v1.ObjectMetaArgsDict = {"name": LOAD_TEST, "namespace": namespace}
        secret = key_secret(LOAD_TEST, namespace, api_key, child)
        objectives = {model: one.model_dump(mode="json", by_alias=True) for model, one in settings.objectives.items()}
        files = core.ConfigMap(LOAD_TEST, metadata=metadata, data={_OBJECTIVES: json.dumps(objectives)}, opts=child)
        container: core.ContainerArgsDict = {
            "name": LOAD_TEST,
            "image": image,
            "args": [
                *("loadtest", scenario),
                *("--objectives", f"{_FOLDER}/{_OBJECTIVES}"),
                *("--retrieved-words", str(retrieved_words_for(settings.max_model_len))),
                "--json",
            ],
            "env": environment(client_variables(secret)),
            "resources": {
                "requests": pod_resources.LOAD_TEST_REQUESTS.quantities(),
                "limits": {"memory": f"{pod_resources.LOAD_TEST_MEMORY_LIMIT_MIB}Mi"},
            },
            "security_context": hardened(),
            "volume_mounts": [
                {"name": "objectives", "mount_path": _FOLDER, "read_only": True},
                {"name": TMP_VOLUME, "mount_path": "/tmp"},
            ],
        }
        pod: core.PodSpecArgsDict = {
            "restart_policy": "Never",
            "containers": [container],
            "volumes": [
                {"name": "objectives", "config_map": {"name": files.metadata.name}},
                {"name": TMP_VOLUME, "empty_dir": {"size_limit": "64Mi"}},
            ],
        }
        cron_job(
            LOAD_TEST,
            namespace,
            LOAD_TEST_SELECTOR,
            client_pod(settings, pod),
            schedule=None,
            attempts_after_the_first=0,  # a missed objective is a result
            longest_seconds=_LONGEST_SECONDS,
            opts=child,
        )
        self.register_outputs({})
