"""Pauses between attempts."""

import math
import random
from dataclasses import dataclass

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 600.0


@dataclass
class Backoff:
    """When to try again what failed: twice as long after each failure, with jitter."""

    failures: int = 0
    due_at: float = 0.0

    def fail(self, now: float) -> None:
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0**self.failures)
        self.failures += 1
        self.due_at = now + pause * random.uniform(0.8, 1.2)

    def give_up(self) -> None:
        self.due_at = math.inf
