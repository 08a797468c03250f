"""From the name a client calls to the versions that may answer: aliases, canary shares, fallback."""

import hashlib
from dataclasses import dataclass, replace

from loraserve.contract.desired_state import Adapter, DesiredState
from loraserve.contract.served_name import ServedName
from loraserve.gateway.errors import NoSuchModel

ANY_OTHER = "*"
"""Stands for any version of the adapter that a pod still holds and that is not declared: the one before a swap."""


@dataclass(frozen=True)
class Route:
    """One way to answer a request. `model` is the public name, which metrics and logs use."""

    model: str
    served: tuple[str, ...]
    """Names under which vLLM may have it, the best first."""
    falls_back: bool = False
    is_patient: bool = False
    """Takes no more than half of a pod's places, so that some are free for who is not."""


class Routes:
    """Everything clients may name. Built anew from each desired state."""

    def __init__(self, desired: DesiredState | None = None) -> None:
        self.base = desired.base.name if desired else None
        self.max_model_len = desired.base.max_model_len if desired else None
        self.has_chat_template = desired is None or desired.base.has_chat_template
        self._adapters: dict[str, list[Adapter]] = {}
        for adapter in desired.adapters if desired else ():
            self._adapters.setdefault(adapter.name, []).append(adapter)
        for versions in self._adapters.values():
            versions.sort(key=lambda adapter: adapter.canary_percent is not None)

    @property
    def models(self) -> tuple[str, ...]:
        """The public names, whether they are awake or not."""
        return (*self._adapters, *([self.base] if self.base else []))

    @property
    def versions(self) -> dict[str, list[str]]:
        """The declared ones of every public name; the base model has none."""
        return {name: [entry.version for entry in self._adapters.get(name, ())] for name in self.models}

    def resolve(self, model: str, caller: str) -> Route:
        """`caller` decides on which side of a canary share a request falls. Raises NoSuchModel."""
        if model == self.base:
            return self.base_route()
        asked = ServedName(model)
        entries = self._adapters.get(asked.adapter, [])
        if asked.version is not None:
            entries = [entry for entry in entries if entry.version == asked.version]
        if not entries:
            raise no_such_model(model)
        served = _served(entries, asked.adapter, caller) if asked.version is None else (entries[0].served_name,)
        return Route(asked.adapter, served, falls_back=entries[0].fallback == "base")

    def base_route(self) -> Route:
        assert self.base is not None
        return Route(self.base, (self.base,))

    def fallback(self, route: Route) -> Route:
        """The base model in the adapter's stead; metrics and logs keep the adapter's name."""
        return replace(self.base_route(), model=route.model, is_patient=route.is_patient)


def no_such_model(model: str) -> NoSuchModel:
    return NoSuchModel(f"The model {model!r} does not exist; /v1/models lists those that do.", param="model")


def _served(entries: list[Adapter], name: str, caller: str) -> tuple[str, ...]:
    """A canary's callers have the stable version to fall back on; the others get the canary only where nothing else is."""
    stable, canary = entries[0], entries[-1]
    if stable is canary:
        return stable.served_name, ANY_OTHER
    if _share(f"{name} {caller}") < (canary.canary_percent or 0):
        return canary.served_name, stable.served_name, ANY_OTHER
    return stable.served_name, ANY_OTHER, canary.served_name


def _share(text: str) -> int:
    """0 to 99, always the same for one text."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]) % 100
