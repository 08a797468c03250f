"""`loraserve status | smoke | dashboard | key | leftovers | receipt | doctor`: a stack that stands, and what is left of one."""

import sys
from pathlib import Path

import click

from loraserve.contract.addresses import SERVING_NAMESPACE
from loraserve.operator.access.kubectl import Kubectl, context_option
from loraserve.operator.access.terminal import (
    json_option,
    key_option,
    plain,
    print_checks,
    print_json,
    print_table,
    stack_config_entry,
    tell,
)

DASHBOARD_PORT = 8091

_namespace = click.option("--namespace", default=SERVING_NAMESPACE, show_default=True, help="Where vLLM runs.")


@click.command()
@context_option
@_namespace
@json_option
def status(context: str | None, namespace: str, as_json: bool) -> None:
    """Show what every vLLM pod holds: adapters, their state and last use.

    While the model sleeps: what is declared, and whether its bytes are in the bucket.
    """
    from loraserve.operator.stack import status as looking

    found = looking.read(Kubectl(context), namespace)
    for warning in found.key_warnings:
        tell(warning)
    if as_json:
        print_json(found.plain())
    elif found.pods:
        print_table(looking.pods_table(found.pods))
    elif found.declared is None:
        click.echo(f"Nothing of loraserve is deployed in namespace {namespace}.")
    else:
        click.echo(f"No pod of vLLM in namespace {namespace}: it is scaled to zero. A request wakes it, to serve:")
        print_table(looking.declared_table(found.declared))


@click.command()
@key_option
@context_option
@json_option
def smoke(key: str, context: str | None, as_json: bool) -> int:
    """Check that a deployed stack does what it is for; exit code 1 where it does not.

    Pods, endpoints, health, an answer of the base model and of an adapter, Prometheus' targets. A sleeping model is woken.
    """
    from loraserve.operator.stack import smoke as checks

    return print_checks(checks.run(Kubectl(context), key), as_json)


@click.command()
@click.option(
    "--prometheus", "url", metavar="URL", help="Of any Prometheus (default: the stack's, by `kubectl port-forward`)."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DASHBOARD_PORT,
    show_default=True,
    help="Of this machine.",
)
@context_option
def dashboard(url: str | None, port: int, context: str | None) -> None:
    """Serve Grafana's dashboards, and the alerts that fire, as a page in a browser, without Grafana.

    It is served on this machine only, until Ctrl-C.
    """
    from loraserve.operator.access.prometheus import reached
    from loraserve.operator.stack.dashboard_server import DashboardServer

    with reached(url, context) as prometheus, DashboardServer(prometheus, port) as server:
        tell(f"Open {server.url} (Ctrl-C ends it)")
        server.serve_forever()


@click.command()
@click.argument("tenant")
@click.option(
    "--models", default="*", metavar="NAMES", help="What it may call, with commas in between (default: everything)."
)
@click.option(
    "--requests-per-minute", type=int, metavar="N", help="Of the tenant, over all its keys (default: unlimited)."
)
@click.option(
    "--tokens-per-minute", type=int, metavar="N", help="Likewise, read and written ones (default: unlimited)."
)
@click.option("--tokens-per-month", type=int, metavar="N", help="Likewise, of a calendar month (default: unlimited).")
@click.option(
    "--sample-percent",
    type=float,
    metavar="N",
    help="The tenant lets so many of its questions to a canary be kept for a week, to judge it (default: none).",
)
@click.option("--expires-at", metavar="TIME", help="Such as 2027-01-31T00:00:00Z (default: never).")
@json_option
def key(
    tenant: str,
    models: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    tokens_per_month: int | None,
    sample_percent: float | None,
    expires_at: str | None,
    as_json: bool,
) -> None:
    """Make an API key for TENANT, such as team-a.

    Shows the key once, on stderr, and prints the entry for the stack config's gatewayKeys, which holds only a digest.
    Rotate by adding a second entry, revoke by removing one.
    """
    from loraserve.contract.keys import create_key

    limits = (requests_per_minute, tokens_per_minute, expires_at, tokens_per_month, sample_percent)
    secret, entry = create_key(tenant, tuple(models.split(",")), *limits)
    if as_json:
        print_json({"key": secret, "entry": plain(entry)})
        return
    tell(f"The key, shown only now: {secret}\nAdd to the stack config's gatewayKeys:")
    click.echo(stack_config_entry(entry))


@click.command()
@click.argument("stack")
def leftovers(stack: str) -> int:
    """Show what a stack has in AWS and not in its state, as the commands that delete it.

    STACK is such as dev; its file Pulumi.dev.yaml says which region and account. Reads a state from standard input (pulumi
    stack export --stack dev | loraserve leftovers dev), looks in AWS for what is not in it, and prints a shell script to
    read. Exit code 2: something is left.
    """
    from loraserve.operator.stack.leftovers import show

    return 2 if show(stack, _piped(), Path()) else 0


@click.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
def receipt(stack: str) -> int:
    """Before `destroy` write down what a stack has; after it say what is left of that, and what it has cost.

    Reads the state from standard input (pulumi stack export --stack dev | loraserve receipt --stack dev) and keeps
    receipt-dev.json here. The cost is an estimate: hours at list price. Exit code 2: something is left.
    """
    from loraserve.operator.stack.receipt import run

    return 2 if run(stack, _piped(), Path()) else 0


@click.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
@click.option("--context", metavar="NAME", help="A context of your kubeconfig (default: no cluster is asked).")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: loraserve-doctor-STACK.tar.gz."
)
def doctor(stack: str, context: str | None, output: Path | None) -> None:
    """Collect what a bug report needs, without secrets, into one archive.

    Versions and settings; with --context also what runs, events and the last logs. Read it before you send it.
    """
    from loraserve.operator.stack import doctor as collecting

    target = output or Path(f"loraserve-doctor-{stack}.tar.gz")
    names = collecting.run(stack, Path(), Kubectl(context) if context else None, target)
    click.echo(
        f"{target}: {', '.join(names)}. Secrets were taken out as far as they can be told: read it before you send it."
    )


def _piped() -> str:
    return "" if sys.stdin.isatty() else sys.stdin.read()


COMMANDS = (status, smoke, dashboard, key, leftovers, receipt, doctor)
