"""What the pod tells the agent, read once from environment variables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from loraserve.agent.drain import DrainTimes
from loraserve.agent.kubernetes import Pod
from loraserve.contract.addresses import AGENT_PORT, VLLM_PORT
from loraserve.contract.desired_state import Envelope
from loraserve.contract.document import explain
from loraserve.errors import LoraserveError


class InvalidSettings(LoraserveError):
    """An environment variable has a value that cannot be used; the message names it."""


@dataclass(frozen=True)
class Kubernetes:
    """The pod's API server, and the object that the desired-state file is a mounted copy of."""

    api_url: str
    pod: Pod
    config_map: str
    credentials: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Folder of `token` and `ca.crt`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """None unless everything is there; the kubelet tells every container where the API is."""
        try:
            host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
            pod = Pod(environment["POD_NAME"], environment["POD_NAMESPACE"], environment["POD_UID"])
            config_map = environment["LORASERVE_CONFIG_MAP"]
        except KeyError:
            return None
        api_url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        credentials = Path(environment.get("LORASERVE_KUBERNETES_CREDENTIALS", cls.credentials))
        return cls(api_url, pod, config_map, credentials)


@dataclass(frozen=True)
class Settings:
    """AWS credentials, region and endpoint are not here: the AWS SDK reads its own variables."""

    desired_file: Path = Path("/etc/loraserve/desired.json")
    kubernetes: Kubernetes | None = None
    """None outside a pod: then only the file is followed, and nobody hears of events."""
    adapter_dir: Path = Path("/mnt/adapters")
    """Shared with vLLM, under the same path."""
    base_folder: Path | None = None
    """Where vLLM looks for mirrored base weights; None: it takes them from the hub."""
    adapter_disk_bytes: int = 10 << 30
    """What versions may take there in all."""
    vllm_url: str = f"http://127.0.0.1:{VLLM_PORT}"
    vllm_api_key: str | None = None
    port: int = AGENT_PORT
    envelope: Envelope | None = None
    """What this pod's vLLM was started with; None takes the desired state's word for it."""
    drain_seconds: float = DrainTimes.quiet_seconds
    longest_drain_seconds: float = DrainTimes.longest_seconds

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises InvalidSettings."""
        port = environment.get("LORASERVE_PORT", str(cls.port))
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InvalidSettings(f"LORASERVE_PORT is {port!r}; set a port number, such as {cls.port}")
        vllm_url = environment.get("VLLM_URL", cls.vllm_url)
        if not vllm_url.startswith(("http://", "https://")):
            raise InvalidSettings(f"VLLM_URL is {vllm_url!r}; set a URL, such as {cls.vllm_url}")
        base_folder = environment.get("LORASERVE_BASE_FOLDER")
        return cls(
            desired_file=Path(environment.get("LORASERVE_DESIRED_FILE", cls.desired_file)),
            kubernetes=Kubernetes.from_environment(environment),
            adapter_dir=Path(environment.get("LORASERVE_ADAPTER_DIR", cls.adapter_dir)),
            base_folder=Path(base_folder) if base_folder else None,
            adapter_disk_bytes=int(
                _number(environment, "LORASERVE_ADAPTER_DISK_BYTES", cls.adapter_disk_bytes, "bytes")
            ),
            vllm_url=vllm_url.rstrip("/"),
            vllm_api_key=environment.get("VLLM_API_KEY") or None,
            port=int(port),
            envelope=_envelope(environment.get("LORASERVE_ENVELOPE")),
            drain_seconds=_number(environment, "LORASERVE_DRAIN_SECONDS", cls.drain_seconds, "seconds"),
            longest_drain_seconds=_number(
                environment, "LORASERVE_LONGEST_DRAIN_SECONDS", cls.longest_drain_seconds, "seconds"
            ),
        )


def _envelope(text: str | None) -> Envelope | None:
    try:
        return Envelope.model_validate_json(text, by_alias=True, by_name=False) if text else None
    except ValidationError as error:
        raise InvalidSettings(f"LORASERVE_ENVELOPE is not as `pulumi up` writes it:\n{explain(error)}") from None


def _number(environment: Mapping[str, str], name: str, default: float, unit: str) -> float:
    text = environment.get(name, str(default))
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InvalidSettings(f"{name} is {text!r}; set a number of {unit}, such as {default:g}")
    return number
