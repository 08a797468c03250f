"""The gateway as an operator reaches it."""

from contextlib import AbstractContextManager, nullcontext

import click

from loraserve.contract.addresses import GATEWAY, GATEWAY_PORT, SERVING_NAMESPACE
from loraserve.operator.access.kubectl import Kubectl

namespace_option = click.option(
    "--namespace", default=SERVING_NAMESPACE, show_default=True, help="Where the gateway runs."
)
url_option = click.option(
    "--url", envvar="OPENAI_BASE_URL", help="Of the API, ends in /v1 (default: the gateway, by `kubectl port-forward`)."
)


def gateway(url: str | None, context: str | None, namespace: str) -> AbstractContextManager[str]:
    """Its URL, without /v1, for as long as it is used."""
    if url:
        return nullcontext(url.rstrip("/").removesuffix("/v1"))
    return Kubectl(context).forward(namespace, f"service/{GATEWAY}", GATEWAY_PORT)
