"""Errors in the shape of OpenAI's API, so that its official clients raise their own exceptions and retry as they should."""

import json
from datetime import date, datetime, timedelta

from loraserve.errors import LoraserveError

LONGEST_RETRY_AFTER = 60
"""The official clients ignore a Retry-After beyond it."""

LONGEST_MESSAGE = 1000
"""One may repeat what the client sent, and waits in memory until it is taken."""


class ApiError(LoraserveError):
    """What a client gets instead of an answer. `code` is also the outcome that metrics and the access log name."""

    status = 500
    kind = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}...")
        self.param = param
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The JSON document, also as the data of a stream's error event."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def headers(self) -> dict[str, str]:
        """A wait beyond LONGEST_RETRY_AFTER is asked for in steps."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(round(min(max(self.retry_after, 1), LONGEST_RETRY_AFTER)))}


class BadRequest(ApiError):
    status, kind, code = 400, "invalid_request_error", "invalid_request"


class NoChatTemplate(ApiError):
    status, kind, code = 400, "invalid_request_error", "no_chat_template"

    def __init__(self, base: str | None) -> None:
        super().__init__(
            f"{base} has no chat template, so it and its adapters answer no conversations: call /v1/completions, or ask the "
            "stack's operator to set chatTemplateFile."
        )


class Unauthorized(ApiError):
    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ApiError):
    status, kind, code = 403, "permission_error", "model_not_allowed"


class NoSuchPage(ApiError):
    status, kind, code = 404, "invalid_request_error", "unknown_url"


class NoSuchModel(ApiError):
    status, kind, code = 404, "invalid_request_error", "model_not_found"


class WrongMethod(ApiError):
    status, kind, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, allowed: set[str]) -> None:
        super().__init__(f"Use {' or '.join(sorted(allowed))} here.")
        self._allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(sorted(self._allowed))}


class TooSlow(ApiError):
    """The request's body did not arrive in time."""

    status, kind, code = 408, "invalid_request_error", "request_timeout"


class TooLarge(ApiError):
    status, kind, code = 413, "invalid_request_error", "request_too_large"


class HeadTooLarge(ApiError):
    status, kind, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self) -> None:
        super().__init__("The request's headers are too large.")


class RateLimited(ApiError):
    status, kind, code = 429, "requests", "rate_limit_exceeded"


class BudgetSpent(ApiError):
    """OpenAI's clients know the code, and try no more."""

    status, kind, code = 429, "insufficient_quota", "insufficient_quota"

    def __init__(self, budget: int, spent: int, renewed: date) -> None:
        super().__init__(
            f"Your {budget:,} tokens of this month are used ({spent:,} counted); there are new ones from {renewed} (UTC) on. Ask "
            "the stack's operator for more."
        )

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class UpstreamBroken(ApiError):
    """vLLM answered what no client can do anything about, or went away while it answered."""

    status, code = 502, "upstream_error"


class Overloaded(ApiError):
    """The waiting room is full."""

    status, code = 503, "overloaded"


class Asleep(ApiError):
    """The model did not wake up within the time that a request is held."""

    status, code = 503, "model_starting"


class HoursSpent(ApiError):
    """Nothing wakes the model any more today."""

    status, code = 503, "gpu_hours_spent"

    def __init__(self, limit: timedelta, until: datetime, *, retry_after: float) -> None:
        super().__init__(
            f"The model sleeps, and today's {limit / timedelta(hours=1):g} hours of running it are used up: it can be woken from "
            f"{until.isoformat()} on. The stack's operator can raise gpuHoursPerDay.",
            retry_after=retry_after,
        )


class Stopping(ApiError):
    """This replica goes; another one takes the request."""

    status, code = 503, "gateway_stopping"


class AdapterUnavailable(ApiError):
    """No pod can serve the adapter, although some are awake."""

    status, code = 503, "adapter_unavailable"


class AdapterLoading(ApiError):
    """An adapter that is loaded on demand did not come within the time that a request waits for it."""

    status, code = 503, "adapter_loading"


class UpstreamTimeout(ApiError):
    status, code = 504, "upstream_timeout"
