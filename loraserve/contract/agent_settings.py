"""What the pod tells the agent. AWS credentials, region and endpoint are not here: the AWS SDK reads its own variables."""

from pathlib import Path
from typing import ClassVar

from loraserve.contract.addresses import AGENT_PORT, VLLM_PORT
from loraserve.contract.desired_state import Envelope
from loraserve.contract.environment import Count, KubernetesSettings, Port, ProcessSettings, Url


class PodSettings(KubernetesSettings):
    """The pod that this agent is part of, and the object that the desired-state file is a mounted copy of."""

    pod_name: str
    pod_uid: str
    config_map: str


class AgentSettings(ProcessSettings):
    prefix: ClassVar[str] = "AGENT_"

    desired_file: Path = Path("/etc/loraserve/desired.json")
    kubernetes: PodSettings | None = None
    """None outside a pod: then only the file is followed, and nobody hears of events."""
    adapter_dir: Path = Path("/mnt/adapters")
    """Shared with vLLM, under the same path."""
    base_folder: Path | None = None
    """Where vLLM looks for mirrored base weights; None: it takes them from the hub."""
    cache_dir: Path | None = None
    """Where vLLM keeps what it compiles; None: nothing is brought there."""
    start_cache_version: str | None = None
    """What vLLM's flags, image and GPU make it compile: a start cache of another version is of no use."""
    adapter_disk_bytes: Count = 10 << 30
    """What versions may take there in all."""
    adapters_held: Count | None = None
    """How many versions vLLM is to hold; of more, those are that were asked for last. None: all that are declared."""
    vllm_url: Url = f"http://127.0.0.1:{VLLM_PORT}"
    vllm_api_key: str | None = None
    port: Port = AGENT_PORT
    envelope: Envelope | None = None
    """What this pod's vLLM was started with; None takes the desired state's word for it."""
