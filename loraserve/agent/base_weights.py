"""Fetches mirrored base weights before vLLM starts: its container waits until `/startupz` says that they are there."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from loraserve.catalog import base_weights
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import DesiredState
from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class BaseWeights:
    """`folder` is where the pod's vLLM looks for them; None: it takes them from the hub."""

    def __init__(self, folder: Path | None, desired: Callable[[], DesiredState | None]) -> None:
        self._desired = desired
        self.obstacle: str | None = None
        """Why vLLM must not start yet; None if it may."""
        if folder and not base_weights.is_complete(folder):
            self.obstacle = "the desired state was not read yet"
            self.thread = threading.Thread(target=self._fetch, args=(folder,), name="base-weights", daemon=True)
            self.thread.start()

    def _fetch(self, folder: Path) -> None:
        """Tries until they are there: without them the pod is of no use."""
        while obstacle := self._attempt(folder):
            self._wait_for(obstacle)
            time.sleep(RETRY_SECONDS)
        self.obstacle = None

    def _attempt(self, folder: Path) -> str | None:
        """What stands in the way; None once they are there."""
        desired = self._desired()
        mirror = desired.base.mirror if desired else None
        if not desired or not mirror or mirror.folder_name != folder.name:
            return f"the desired state does not name base weights {folder.name} (yet)"
        self._wait_for(f"base weights {folder.name} are being fetched")
        started = time.monotonic()
        try:
            base_weights.fetch(Bucket(desired.bucket, desired.region), desired.base.name, mirror, folder)
        except (LoraserveError, OSError) as error:
            return str(error)
        except Exception as error:
            log.exception(event("base weights not fetched"))
            return f"{type(error).__name__}: {error}"
        log.info(event("base weights fetched", bytes=mirror.size_bytes, seconds=f"{time.monotonic() - started:.1f}"))
        return None

    def _wait_for(self, obstacle: str) -> None:
        if obstacle != self.obstacle:
            log.info(event("vLLM waits", reason=obstacle))
        self.obstacle = obstacle
