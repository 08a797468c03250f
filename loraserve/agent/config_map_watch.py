"""Follows the ConfigMap object itself: the kubelet renews its mounted copy only up to 90 seconds later."""

import logging
import random
import threading
import time
from collections.abc import Callable

from loraserve.agent.kubernetes import ApiError, KubernetesApi
from loraserve.log import event

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class ConfigMapWatch:
    """`content` and `live_at` may be read from any thread; `on_change` is called from the watch's own."""

    def __init__(
        self, api: KubernetesApi, namespace: str, name: str, key: str, on_change: Callable[[], object]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._key = key
        self._on_change = on_change
        self._problem: str | None = None
        self.content: bytes | None = None
        """The text under `key` when it was last seen; None before the first time."""
        self.is_live = False
        """Whether a change would be seen at once."""
        self.lost_at = 0.0
        """When that ceased to be so, in seconds since 1970."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="config-map-watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._follow()
            except ApiError as error:
                self._lose(str(error))
            except Exception as error:
                log.exception(event("watch failed"))
                self._lose(f"{type(error).__name__}: {error}")
            time.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))

    def _follow(self) -> None:
        for data in self._api.follow_config_map(self._namespace, self._name):
            if self._key in data:
                self.content = data[self._key].encode()
            if not self.is_live:
                log.info(event("following the ConfigMap through the API", name=self._name))
            self.is_live, self._problem = True, None
            self._on_change()

    def _lose(self, problem: str) -> None:
        if problem != self._problem:
            log.warning(event("ConfigMap not followed, its mounted copy is", name=self._name, reason=problem))
        self._problem = problem
        if self.is_live:
            self.is_live, self.lost_at = False, time.time()
            self._on_change()
