"""Under which name vLLM serves one version of one adapter."""

from typing import Self


class ServedName(str):
    """`name@version`; no two versions ever share one. Any text may be looked at as one: a base model has no version."""

    __slots__ = ()

    @classmethod
    def of(cls, adapter: str, version: str) -> Self:
        return cls(f"{adapter}@{version}")

    @property
    def adapter(self) -> str:
        return self.partition("@")[0]

    @property
    def version(self) -> str | None:
        """None where the text names none."""
        _, at, version = self.partition("@")
        return version if at else None
