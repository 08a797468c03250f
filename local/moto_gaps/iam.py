"""IAM: with policies enforced, moto also recomputes each call's signature, and for calls without a body gets it wrong.

Keys must be known and policies must allow the action; the signature itself is not checked.
"""

from __future__ import annotations

from moto.iam.access_control import IAMRequestBase


def install() -> None:
    """Takes every signature for right."""
    IAMRequestBase.check_signature = lambda self: None
