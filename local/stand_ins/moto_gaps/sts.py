"""STS: a pod's first call carries no signature, only its token. moto's enforced IAM would fail on it.

The token and the role's trust policy are not checked.
"""

from __future__ import annotations

from moto.sts.responses import TokenResponse

_UNSIGNED = frozenset({"AssumeRoleWithWebIdentity"})


def install() -> None:
    """Lets the calls through that AWS takes without a signature."""
    authorize = TokenResponse._authenticate_and_authorize_normal_action

    def authorize_signed(self: TokenResponse, resource: str = "*") -> None:
        if self._get_action() not in _UNSIGNED:
            authorize(self, resource)

    TokenResponse._authenticate_and_authorize_normal_action = authorize_signed
