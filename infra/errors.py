"""The one error this program raises for what a person can fix."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi


class ConfigError(pulumi.RunError):
    """The stack's configuration cannot be deployed. Each problem names its key and the fix; nothing was changed."""

    def __init__(self, problems: Sequence[str]) -> None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"the stack's configuration needs attention, nothing was changed:\n{listed}")
        self.problems = tuple(problems)
