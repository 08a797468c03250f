"""What the pod tells the gateway, read once from environment variables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError

from loraserve.contract.addresses import AGENT_PORT, GATEWAY_METRICS_PORT, GATEWAY_PORT, VLLM_PORT
from loraserve.contract.document import Document, explain
from loraserve.errors import LoraserveError

PREFIX = "GATEWAY_"

Port = Annotated[int, Field(ge=0, lt=1 << 16)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class InvalidSettings(LoraserveError):
    """An environment variable has a value that cannot be used; the message names it."""


class Settings(Document):
    """`max_body_bytes` is read from GATEWAY_MAX_BODY_BYTES, and so on."""

    namespace: str
    vllm_service: str
    """The Service whose EndpointSlices name vLLM's pods."""
    gateway_service: str
    """The gateway's own, whose ready endpoints are its replicas."""
    desired_config_map: str
    desired_key: str = "desired.json"
    keys_file: Path = Path("/etc/loraserve/keys/keys.json")
    vllm_api_key: str
    port: Port = GATEWAY_PORT
    tls_port: Port | None = None
    """For the load balancer; None: there is none."""
    metrics_port: Port = GATEWAY_METRICS_PORT
    vllm_port: Port = VLLM_PORT
    agent_port: Port = AGENT_PORT

    max_body_bytes: Count = 4 << 20
    body_seconds: Seconds = 30
    """A request's body arrives within it."""
    idle_seconds: Seconds = 30
    """A connection without a request, or whose request's headers are not complete, is closed."""
    stall_seconds: Seconds = 180
    """vLLM sends nothing, or a client takes nothing, for so long: the exchange is given up."""
    pod_concurrency: Count = 256
    """Requests that all replicas together have running on one vLLM pod; more wait here, where waiting is fair."""
    max_waiting: Count = 1000
    max_waiting_bytes: Count = 64 << 20
    wait_seconds: Annotated[float, Field(ge=0)] = 540
    """How long a request is held: longer than a cold start, shorter than the official client's own limit of 600."""
    cold_start_seconds: Seconds = 450
    """How long a start from zero takes, until this replica has seen one."""
    drain_seconds: Seconds = 150
    """A stopping gateway lets running generations finish."""

    kubernetes_url: Url
    kubernetes_ca_file: Path = _SERVICE_ACCOUNT / "ca.crt"
    kubernetes_token_file: Path = _SERVICE_ACCOUNT / "token"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises InvalidSettings."""
        variables = {PREFIX + field.upper(): field for field in cls.model_fields}
        values = {field: environment[name] for name, field in variables.items() if environment.get(name)}
        if host := environment.get("KUBERNETES_SERVICE_HOST"):
            port = environment.get("KUBERNETES_SERVICE_PORT", "443")
            values.setdefault("kubernetes_url", f"https://{host}:{port}")
        try:
            return cls.model_validate(values, by_alias=False, by_name=True)
        except ValidationError as error:
            lines = explain(error).splitlines()
            raise InvalidSettings("\n".join(PREFIX + _upper_field(line) for line in lines)) from None


def _upper_field(line: str) -> str:
    field, _, problem = line.partition(":")
    return f"{field.upper()}:{problem}"
