"""Follows the ConfigMap object itself: the kubelet renews its mounted copy only up to 90 seconds later."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from loraserve.kubernetes import KubernetesApi, Manifest, config_map
from loraserve.log import event

log = logging.getLogger(__name__)


class ConfigMapWatch:
    """Attributes may be read from any thread; `on_change` is called from the watch's own."""

    def __init__(
        self, api: KubernetesApi, namespace: str, name: str, key: str, on_change: Callable[[], object]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._key = key
        self._on_change = on_change
        self.content: bytes | None = None
        """The text under `key` when it was last seen; None where there was none."""
        self.is_live = False
        """Whether a change would be seen at once."""
        self.lost_at = 0.0
        """When that ceased to be so, in seconds since 1970."""

    def start(self) -> threading.Thread:
        """The watch's own thread, which must not end."""
        thread = threading.Thread(target=self._follow, name="config-map-watch", daemon=True)
        thread.start()
        return thread

    def _follow(self) -> None:
        asyncio.run(self._api.follow(config_map(self._namespace, self._name), self._see, self._lose))

    def _see(self, config_maps: list[Manifest]) -> None:
        texts = [(manifest.get("data") or {}).get(self._key) for manifest in config_maps]
        self.content = next((text.encode() for text in texts if text is not None), None)
        if not self.is_live:
            log.info(event("following the ConfigMap through the API", name=self._name))
        self.is_live = True
        self._on_change()

    def _lose(self) -> None:
        if self.is_live:
            log.warning(event("ConfigMap not followed, its mounted copy is", name=self._name))
            self.is_live, self.lost_at = False, time.time()
            self._on_change()
