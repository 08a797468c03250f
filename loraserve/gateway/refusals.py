"""What a refusal of vLLM means, by the words of vLLM 0.32.0. A client's request has no part in these."""

import json

_NO_CHAT_TEMPLATE = "As of transformers v4.44, default chat template is no longer allowed"
"""It tells nobody what to do here."""


def means_unknown_adapter(status: int, body: bytes, served: str) -> bool:
    """Whether vLLM's error is about the adapter itself."""
    if status not in (400, 404):
        return False
    param, message = _told(body)
    unknown = status == 404 and (param == "model" or message == f"The model `{served}` does not exist.")
    return unknown or message.startswith(f"Loading lora {served} failed: No adapter found for ")


def means_no_chat_template(body: bytes) -> bool:
    """Whether the model has none, and nobody gave it one."""
    return _told(body)[1].startswith(_NO_CHAT_TEMPLATE)


def _told(body: bytes) -> tuple[str | None, str]:
    """What vLLM's error is about, and its words; no words where it is none."""
    try:
        error = json.loads(body)["error"]
        return error.get("param"), str(error.get("message"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, ""
