"""Release 0.1.0, whose servers can take part where a checkout of it is given: what it is told, in its own words."""

from __future__ import annotations

import json
from pathlib import Path

from loraserve.contract.desired_state import DesiredState

NAME = "0.1.0"


def command(checkout: Path | None, *words: str) -> tuple[str, ...]:
    """Run in the checkout, where one is given."""
    return ("sh", "-c", 'cd "$0" && exec "$@"', str(checkout), *words) if checkout else words


def document(desired: DesiredState) -> str:
    """For both: that release refuses a key that it does not know."""
    content = json.loads(desired.to_json())
    del content["base"]["hasChatTemplate"]
    return json.dumps(content)
