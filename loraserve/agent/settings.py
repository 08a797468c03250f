"""What the pod tells the agent, read once from environment variables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from loraserve.errors import LoraserveError


class InvalidSettings(LoraserveError):
    """An environment variable has a value that cannot be used; the message names it."""


@dataclass(frozen=True)
class Settings:
    """AWS credentials, region and endpoint are not here: the AWS SDK reads its own variables."""

    desired_file: Path = Path("/etc/loraserve/desired.json")
    adapter_dir: Path = Path("/mnt/adapters")
    """Shared with vLLM, under the same path."""
    base_folder: Path | None = None
    """Where vLLM looks for mirrored base weights; None: it takes them from the hub."""
    vllm_url: str = "http://127.0.0.1:8000"
    vllm_api_key: str | None = None
    port: int = 9090

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
            adapter_dir=Path(environment.get("LORASERVE_ADAPTER_DIR", cls.adapter_dir)),
            base_folder=Path(base_folder) if base_folder else None,
            vllm_url=vllm_url.rstrip("/"),
            vllm_api_key=environment.get("VLLM_API_KEY") or None,
            port=int(port),
        )
