"""Jobs whose pods call the gateway as any client does, each kind with a key of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.names import GATEWAY, GATEWAY_CLIENT_LABELS, GATEWAY_PORT
from infra.pods import of_secret, run_as, tolerations
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

_KEY = "api-key"
_USER_ID = 65532
_NEVER = "0 0 1 1 *"
_START_WITHIN_SECONDS = 3600
_KEPT_SECONDS = 7 * 24 * 3600


def key_secret(
    client: str, namespace: pulumi.Input[str], api_key: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> core.Secret:
    """The client's key, for its pods alone."""
    return core.Secret(
        client, metadata={"name": client, "namespace": namespace}, string_data={_KEY: api_key}, opts=opts
    )


def client_variables(secret: core.Secret) -> dict[str, Any]:
    """What every client of OpenAI's API reads."""
    return {
        "OPENAI_BASE_URL": f"http://{GATEWAY}:{GATEWAY_PORT}/v1",
        "OPENAI_API_KEY": of_secret(secret.metadata.name, _KEY),
    }


def client_pod(settings: Settings, pod: core.PodSpecArgsDict) -> core.PodSpecArgsDict:
    """What is the same in all of them; Kubernetes' API is nothing to them."""
    return {
        "automount_service_account_token": False,
        "enable_service_links": False,
        "tolerations": tolerations(settings),
        "security_context": run_as(_USER_ID),
        **pod,
    }


def cron_job(
    name: str,
    namespace: pulumi.Input[str],
    labels: Mapping[str, str],
    pod: core.PodSpecArgsDict,
    *,
    schedule: str | None,
    attempts_after_the_first: int,
    longest_seconds: int,
    opts: pulumi.ResourceOptions,
) -> k8s.batch.v1.CronJob:
    """Without a schedule it is suspended: `kubectl create job NAME --from=cronjob/…` starts it."""
    return k8s.batch.v1.CronJob(
        name,
        metadata={"name": name, "namespace": namespace, "labels": labels},
        spec={
            "schedule": schedule or _NEVER,
            "time_zone": "Etc/UTC",
            "suspend": schedule is None,
            "concurrency_policy": "Forbid",
            "starting_deadline_seconds": _START_WITHIN_SECONDS,
            "successful_jobs_history_limit": 1,
            "failed_jobs_history_limit": 1,
            "job_template": {
                "spec": {
                    "backoff_limit": attempts_after_the_first,
                    "active_deadline_seconds": longest_seconds,
                    "ttl_seconds_after_finished": _KEPT_SECONDS,
                    "template": {"metadata": {"labels": {**labels, **GATEWAY_CLIENT_LABELS}}, "spec": pod},
                }
            },
        },
        opts=opts,
    )
