"""The gateway as Kubernetes objects: the only way in to vLLM, two replicas or more, on nodes that never sleep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import pulumi_random as random

from infra.iam import PodIdentity, token_mount, token_volume
from infra.names import (
    AGENT_PORT,
    DESIRED_STATE,
    DESIRED_STATE_FILE,
    EVALUATOR,
    GATEWAY,
    GATEWAY_CLIENT_LABELS,
    GATEWAY_LABELS,
    GATEWAY_METRICS_PORT,
    GATEWAY_PORT,
    GATEWAY_SELECTOR,
    GATEWAY_TLS_PORT,
    HTTP_PORT_NAME,
    LOAD_TEST,
    METRICS_PORT_NAME,
    VLLM_API_KEY,
    VLLM_PORT,
    VLLM_SERVICE,
)
from infra.place import serving_namespace
from infra.pods import (
    environment,
    grant,
    hardened,
    may_watch,
    of_pod,
    of_secret,
    probe,
    run_as,
    service_ports,
    tolerations,
)
from loraserve.contract.addresses import GATEWAY_KEYS, GATEWAY_KEYS_FILE
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import Key, KeyRing, digest_of_key, key_of
from loraserve.planning import pod_resources, traces
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1

PRESTOP_SECONDS = 10
"""The endpoint leaves every kube-proxy before the gateway stops to listen."""
_GRACE_MARGIN_SECONDS = 10
_KEYS_DIR = "/etc/loraserve/keys"
_USER_ID = 65532
_SPREAD_OVER = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


def gateway_variables(
    settings: Settings, vllm_api_key: core.EnvVarSourceArgsDict, usage_bucket: pulumi.Input[str]
) -> dict[str, Any]:
    """What the gateway is told."""
    someone_wakes_it = settings.scaling_enabled or settings.inference_replicas
    return GatewaySettings.variables(
        kubernetes_namespace=serving_namespace(settings),
        vllm_service=VLLM_SERVICE,
        gateway_service=GATEWAY,
        desired_config_map=DESIRED_STATE,
        desired_key=DESIRED_STATE_FILE,
        keys_file=f"{_KEYS_DIR}/{GATEWAY_KEYS_FILE}",
        vllm_api_key=vllm_api_key,
        usage_bucket=usage_bucket,
        reads_verdicts=bool(settings.evaluations),
        log_format=settings.log_format,
        traces_url=settings.traces_endpoint and traces.traces_url(settings.traces_endpoint),
        pod_name=of_pod("metadata.name"),
        port=GATEWAY_PORT,
        tls_port=GATEWAY_TLS_PORT if settings.gateway_certificate_arn else None,
        metrics_port=GATEWAY_METRICS_PORT,
        vllm_port=VLLM_PORT,
        agent_port=AGENT_PORT,
        pod_concurrency=settings.levers.max_num_seqs,
        stall_seconds=settings.stall_seconds,
        wait_seconds=settings.hold_seconds if someone_wakes_it else 0,
        replica_hours_per_day=settings.replica_hours_per_day,
        drain_seconds=settings.longest_generation_seconds,
        balancer_idle_seconds=settings.balancer_idle_seconds,
    )


def how_to_call(namespace: str, client_namespaces: Sequence[str]) -> dict[str, str]:
    """How a person, and a pod of the same cluster, reach the models."""
    [(label, value)] = GATEWAY_CLIENT_LABELS.items()
    all_of = f", and all in the namespaces {', '.join(client_namespaces)}" if client_namespaces else ""
    return {
        "forward": f"kubectl --namespace {namespace} port-forward service/{GATEWAY} {GATEWAY_PORT}",
        "url": f"http://localhost:{GATEWAY_PORT}/v1",
        "urlInCluster": f"http://{GATEWAY}.{namespace}:{GATEWAY_PORT}/v1",
        "podsThatMayCall": f"those with the label {label}={value}{all_of}",
        "newKeyCommand": "loraserve key <tenant>",
    }


def _clients_in_the_cluster(settings: Settings) -> list[str]:
    """Names of tenants, and of the pods that call as such."""
    wanted = {EVALUATOR: bool(settings.evaluations), LOAD_TEST: settings.load_test is not None}
    return [client for client, is_wanted in wanted.items() if is_wanted]


def _id(client: str) -> str:
    """Of its key."""
    return client.replace("-", "")


class Gateway(pulumi.ComponentResource):
    """The gateway's Deployment, what it may see of the cluster, and the Service that clients call."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        vllm_key_secret: pulumi.Input[str],
        identity: PodIdentity,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Gateway", name, None, opts)
        self._settings = settings
        self._namespace = namespace
        self._image = image
        self._vllm_key_secret = vllm_key_secret
        self._identity = identity
        self._child = pulumi.ResourceOptions(parent=self)
        self.api_keys = {client: self._create_key(client) for client in _clients_in_the_cluster(settings)}
        """Of pods that the stack itself runs as clients."""
        access = self._let_it_watch()
        keys = self._create_keys()
        self.deployment = self._create_deployment(keys, access)
        self.service = self._create_service()
        k8s.policy.v1.PodDisruptionBudget(
            GATEWAY,
            metadata=self._metadata(),
            spec={"max_unavailable": 1, "selector": {"match_labels": GATEWAY_SELECTOR}},
            opts=self._child,
        )
        self.register_outputs({"service": self.service.metadata.name})

    def _metadata(self) -> k8s.meta.v1.ObjectMetaArgsDict:
        return {"name": GATEWAY, "namespace": self._namespace, "labels": GATEWAY_LABELS}

    def _let_it_watch(self) -> pulumi.Resource:
        """Which pods there are and what they shall serve; nothing else of the API."""
        account = core.ServiceAccount(
            GATEWAY, metadata=self._metadata(), automount_service_account_token=False, opts=self._child
        )
        return grant(
            GATEWAY,
            self._metadata(),
            account.metadata.name,
            [may_watch("discovery.k8s.io", "endpointslices"), may_watch("", "configmaps", DESIRED_STATE)],
            self._child,
        )

    def _create_key(self, client: str) -> pulumi.Output[str]:
        secret = random.RandomPassword(f"{client}-api-key", length=48, special=False, opts=self._child)
        return secret.result.apply(lambda secret: key_of(_id(client), secret))

    def _create_keys(self) -> core.Secret:
        """Digests of the keys; a changed one reaches the gateway through the mount, without a restart."""
        keys = self._settings.gateway_keys

        def with_clients(own: Mapping[str, str]) -> str:
            theirs = (Key(id=_id(name), tenant=name, sha256=digest_of_key(key)) for name, key in own.items())
            return KeyRing(keys=(*keys, *theirs)).to_json()

        ring = pulumi.Output.all(**self.api_keys).apply(with_clients) if self.api_keys else with_clients({})
        return core.Secret(
            GATEWAY_KEYS,
            metadata={"name": GATEWAY_KEYS, "namespace": self._namespace},
            string_data={GATEWAY_KEYS_FILE: ring},
            opts=self._child,
        )

    def _create_deployment(self, keys: core.Secret, access: pulumi.Resource) -> k8s.apps.v1.Deployment:
        return k8s.apps.v1.Deployment(
            GATEWAY,
            metadata=self._metadata(),
            spec={
                "replicas": self._settings.gateway_replicas,
                "revision_history_limit": 3,
                "selector": {"match_labels": GATEWAY_SELECTOR},
                # Held requests and streams stay where they are until their replica has been replaced.
                "strategy": {"type": "RollingUpdate", "rolling_update": {"max_surge": 1, "max_unavailable": 0}},
                "template": {"metadata": {"labels": GATEWAY_LABELS}, "spec": self._pod_spec(keys)},
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[access]),
        )

    def _pod_spec(self, keys: core.Secret) -> core.PodSpecArgsDict:
        drain_seconds = self._settings.longest_generation_seconds
        return {
            "service_account_name": GATEWAY,
            "automount_service_account_token": True,
            "enable_service_links": False,
            "tolerations": tolerations(self._settings),
            "topology_spread_constraints": [
                {
                    "topology_key": key,
                    "max_skew": 1,
                    "when_unsatisfiable": "ScheduleAnyway",
                    "label_selector": {"match_labels": GATEWAY_SELECTOR},
                }
                for key in _SPREAD_OVER
            ],
            "termination_grace_period_seconds": PRESTOP_SECONDS + drain_seconds + _GRACE_MARGIN_SECONDS,
            "security_context": run_as(_USER_ID),
            "containers": [self._container()],
            "volumes": [{"name": "keys", "secret": {"secret_name": keys.metadata.name}}, token_volume()],
        }

    def _container(self) -> core.ContainerArgsDict:
        identity, secret = self._identity, of_secret(self._vllm_key_secret, VLLM_API_KEY)
        variables = gateway_variables(self._settings, secret, identity.bucket)
        variables |= identity.variables(self._settings.local.aws_endpoint_url)
        ports: list[core.ContainerPortArgsDict] = [
            {"name": HTTP_PORT_NAME, "container_port": GATEWAY_PORT},
            {"name": METRICS_PORT_NAME, "container_port": GATEWAY_METRICS_PORT},
        ]
        if self._settings.gateway_certificate_arn:
            ports.append({"name": "https", "container_port": GATEWAY_TLS_PORT})
        return {
            "name": GATEWAY,
            "image": self._image,
            "args": ["gateway"],
            "env": environment(variables),
            "ports": ports,
            "readiness_probe": probe("/readyz", GATEWAY_METRICS_PORT, period=5, timeout=3),
            "liveness_probe": probe("/livez", GATEWAY_METRICS_PORT, period=10, timeout=3),
            "lifecycle": {"pre_stop": {"sleep": {"seconds": PRESTOP_SECONDS}}},
            "resources": {
                "requests": pod_resources.GATEWAY_REQUESTS.quantities(),
                "limits": {"memory": f"{pod_resources.GATEWAY_MEMORY_LIMIT_MIB}Mi"},
            },
            "security_context": hardened(),
            "volume_mounts": [{"name": "keys", "mount_path": _KEYS_DIR, "read_only": True}, token_mount()],
        }

    def _create_service(self) -> core.Service:
        """KEDA reads every replica through it, on the metrics port, which clients do not reach."""
        return core.Service(
            GATEWAY,
            metadata=self._metadata(),
            spec={
                "type": "ClusterIP",
                "selector": GATEWAY_SELECTOR,
                "ports": service_ports(http=GATEWAY_PORT, metrics=GATEWAY_METRICS_PORT),
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self.deployment]),
        )
