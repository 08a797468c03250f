"""What the pod tells the gateway."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from loraserve.contract.addresses import AGENT_PORT, GATEWAY, GATEWAY_METRICS_PORT, GATEWAY_PORT, VLLM_PORT
from loraserve.contract.environment import Count, KubernetesSettings, Port, ProcessSettings, Seconds, Url


class GatewaySettings(ProcessSettings):
    prefix: ClassVar[str] = "GATEWAY_"

    kubernetes: KubernetesSettings
    vllm_service: str
    """The Service whose EndpointSlices name vLLM's pods."""
    gateway_service: str
    """The gateway's own, whose ready endpoints are its replicas."""
    desired_config_map: str
    desired_key: str = "desired.json"
    keys_file: Path = Path("/etc/loraserve/keys/keys.json")
    vllm_api_key: str
    usage_bucket: str | None = None
    """Where the usage ledger is; None: there is none, and no monthly budget holds."""
    reads_verdicts: bool = False
    """Whether it exports the last verdict of each declared version, from the same bucket."""
    traces_url: Url | None = None
    """Where a collector takes spans, as OTLP over HTTP; None: nothing is traced."""
    pod_name: str = GATEWAY
    port: Port = GATEWAY_PORT
    tls_port: Port | None = None
    """For the load balancer; None: there is none."""
    metrics_port: Port = GATEWAY_METRICS_PORT
    vllm_port: Port = VLLM_PORT
    agent_port: Port = AGENT_PORT

    stall_seconds: Seconds = 180
    """vLLM sends nothing, or a client takes nothing, for so long: the exchange is given up."""
    pod_concurrency: Count = 256
    """Requests that all replicas together have running on one vLLM pod; more wait here, where waiting is fair."""
    wait_seconds: Annotated[float, Field(ge=0)]
    """How long a request is held: as long as a start from zero may take."""
    replica_hours_per_day: Annotated[float, Field(gt=0)] | None = None
    """Of vLLM's pods together; once they are used up, a sleeping model is not woken before the next day. None: no limit."""
    drain_seconds: Seconds = 150
    """A stopping gateway lets running generations finish."""
    balancer_idle_seconds: Seconds
    """The load balancer keeps a connection for so long without traffic."""
