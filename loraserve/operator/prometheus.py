"""What Prometheus answers to a query."""

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from loraserve.errors import LoraserveError

_TIMEOUT_SECONDS = 30


class NoAnswer(LoraserveError):
    """Nothing at that address answers as Prometheus does."""


def query(url: str, promql: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series now. Raises NoAnswer."""
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer:
            content: Any = json.load(answer)
        return [(each["metric"], float(each["value"][1])) for each in content["data"]["result"]]
    except urllib.error.HTTPError as error:
        raise NoAnswer(
            f"Prometheus at {url} answers {error.code}: {error.read(300).decode(errors='replace')}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoAnswer(f"{url} does not answer as Prometheus does ({error}): name another address") from None
