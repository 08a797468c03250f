"""IAM, with policies enforced: signatures that moto gets wrong, a condition, a resource and a principal that it does not know.

moto recomputes each call's signature, and for calls without a body gets another one. Keys must be known and policies must
allow the action; the signature itself is not checked.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from flask import request
from moto.iam.access_control import IAMPolicyStatement, IAMRequestBase


def install() -> None:
    """Takes every signature for right; looks at the prefix that a bucket may be listed under, at which parameter is read, and
    at the account that a role trusts."""
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
    check_action = IAMRequestBase.check_action_permitted

    def check_of_resource(self: IAMRequestBase, resource: str) -> None:
        """A public parameter belongs to no account."""
        if self._action == "ssm:GetParameter":
            resource = f"arn:aws:ssm:{self._region}::parameter{request.get_json(force=True)['Name']}"
        check_action(self, resource)

    IAMRequestBase.check_action_permitted = check_of_resource
    names = IAMPolicyStatement._check_principal

    def names_account(self: IAMPolicyStatement, principal: str) -> bool:
        """An account's root stands for everybody in it whose own policies allow the call."""
        _, partition, _, _, account, _ = principal.split(":", 5)
        trusted = (self._statement.get("Principal") or {}).get("AWS")
        return trusted == f"arn:{partition}:iam::{account}:root" or names(self, principal)

    IAMPolicyStatement._check_principal = names_account
