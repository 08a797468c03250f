"""The `random` provider: passwords made once and kept in the stack's state."""

from __future__ import annotations

import secrets
import string
from importlib import metadata

from local.stand_ins.provider import Properties, Provider, ReadResult, ResourceType, serve
from local.stand_ins.values import secret


class RandomPassword(ResourceType):
    """`random:index/randomPassword:RandomPassword`. Output `result`, a secret. Anything that changes means a new one."""

    token = "random:index/randomPassword:RandomPassword"
    required = frozenset({"length"})
    optional = frozenset({"special"})
    replace_on = required | optional

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        alphabet = string.ascii_letters + string.digits + ("!#$%&*-_=+" if inputs.get("special", True) else "")
        password = "".join(secrets.choice(alphabet) for _ in range(inputs["length"]))
        return "none", inputs | {"result": secret(password)}

    def read(self, resource_id: str, inputs: Properties, outputs: Properties) -> ReadResult | None:
        return ReadResult(inputs, outputs | {"result": secret(outputs["result"])})

    def delete(self, resource_id: str, inputs: Properties, outputs: Properties) -> None:
        """It exists in the state only."""


if __name__ == "__main__":
    serve(
        Provider(
            name="random", version=metadata.version("pulumi-random"), resources={RandomPassword.token: RandomPassword()}
        )
    )
