"""IAM, with policies enforced: signatures that moto gets wrong, and a condition that it does not know.

moto recomputes each call's signature, and for calls without a body gets another one. Keys must be known and policies must
allow the action; the signature itself is not checked.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from flask import request
from moto.iam.access_control import IAMPolicyStatement, IAMRequestBase


def install() -> None:
    """Takes every signature for right, and looks at the prefix that a bucket may be listed under."""
    IAMRequestBase.check_signature = lambda self: None
    check_others = IAMPolicyStatement._check_conditions

    def check(self: IAMPolicyStatement, incoming_condition_values: dict[str, str] | None) -> bool:
        condition = self._statement.get("Condition") or {}
        allowed = condition.get("StringLike", {}).get("s3:prefix")
        if allowed is None:
            return check_others(self, incoming_condition_values)
        asked = request.args.get("prefix", "")
        return any(fnmatchcase(asked, pattern) for pattern in allowed)

    IAMPolicyStatement._check_conditions = check
