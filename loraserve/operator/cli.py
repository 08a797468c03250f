"""`loraserve`: what publishers, operators and the pods run."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from loraserve import log
from loraserve.contract.addresses import GATEWAY, GATEWAY_PORT, SERVING_NAMESPACE, cluster_name
from loraserve.contract.checks import Check, CheckVerdict
from loraserve.errors import LoraserveError
from loraserve.operator import (
    application_commands,
    catalog_commands,
    evaluation_commands,
    loadtest_commands,
    planning_commands,
    question_commands,
    release_commands,
    training_commands,
    usage_commands,
)
from loraserve.operator.kubectl import Kubectl, context_option
from loraserve.operator.terminal import (
    busy,
    json_option,
    key_option,
    plain,
    print_json,
    print_table,
    stack_config_entry,
    stack_config_setting,
    tell,
)

PROGRAM = "loraserve"
_COMPLETION_VARIABLE = "_LORASERVE_COMPLETE"
_EXTRAS = {"jsonschema": "evaluate", "plotly": "dashboard"} | dict.fromkeys(
    ("torch", "transformers", "peft", "accelerate", "bitsandbytes"), "train"
)
"""Which extra of the package brings a library; the others come with `server`."""

_namespace = click.option("--namespace", default=SERVING_NAMESPACE, show_default=True, help="Where vLLM runs.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 after a clear error on stderr (2 for wrong usage; see also `leftovers`)."""
    try:
        return cli.main(arguments, PROGRAM, _COMPLETION_VARIABLE, standalone_mode=False) or 0
    except click.ClickException as wrong_usage:
        wrong_usage.show()
        return wrong_usage.exit_code
    except click.Abort:
        return 130
    except LoraserveError as error:
        tell(f"loraserve: {error}")
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "", "server")
        tell(f"loraserve: {error.name} is missing here: pip install 'loraserve[{extra}]'")
    return 1


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "of a checkout"


_FOR = {
    "Adapters, for publishers": ("questions", "train", "check", "publish", "list", "show", "verify", "diff"),
    "Releases": ("evaluate", "promote", "rollback", "canary", "export", "import", "release"),
    "Models, for applications": ("ask", "batch", "page"),
    "A stack, before it is there": ("plan", "cost", "base-model", "mirror", "preflight"),
    "A stack, for operators": (
        "status",
        "smoke",
        "dashboard",
        "key",
        "usage",
        "loadtest",
        "gc",
        "doctor",
        "receipt",
        "leftovers",
    ),
    "Your shell": ("completion",),
    "In the pods": ("agent", "gateway", "start-cache-writer"),
}


class _ByUser(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """By who uses them, not by the alphabet."""
        return [name for _, names in self._sections() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence."""
        for title, names in self._sections():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(200)) for name in names])

    def _sections(self) -> list[tuple[str, list[str]]]:
        named = {name for names in _FOR.values() for name in names}
        others = [name for name in self.commands if name not in named]
        return [(title, list(names)) for title, names in _FOR.items()] + ([("Others", others)] if others else [])


@click.group(cls=_ByUser, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name=PROGRAM)
def cli() -> None:
    """Serve many LoRA adapters on one base model."""


for _command in (
    *catalog_commands.COMMANDS,
    *release_commands.COMMANDS,
    *planning_commands.COMMANDS,
    *application_commands.COMMANDS,
    *loadtest_commands.COMMANDS,
    *evaluation_commands.COMMANDS,
    *training_commands.COMMANDS,
    *question_commands.COMMANDS,
    usage_commands.usage,
):
    cli.add_command(_command)


@cli.command()
@context_option
@_namespace
@json_option
def status(context: str | None, namespace: str, as_json: bool) -> None:
    """Show what every vLLM pod holds: adapters, their state and last use.

    While the model sleeps: what is declared, and whether its bytes are in the bucket.
    """
    from loraserve.operator import status as looking

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


@cli.command()
@click.argument("model")
@click.argument("prompt")
@click.option(
    "--url", envvar="OPENAI_BASE_URL", help="Of the API, ends in /v1 (default: the gateway, by `kubectl port-forward`)."
)
@key_option
@context_option
@_namespace
@json_option
def ask(model: str, prompt: str, url: str | None, key: str, context: str | None, namespace: str, as_json: bool) -> None:
    """Ask a model, or an adapter, one question; a sleeping one is woken, which takes minutes."""
    if url:
        _ask(url, key, model, prompt, as_json)
        return
    with Kubectl(context).forward(namespace, f"service/{GATEWAY}", GATEWAY_PORT) as forwarded:
        _ask(f"{forwarded}/v1", key, model, prompt, as_json)


def _ask(url: str, key: str, model: str, prompt: str, as_json: bool) -> None:
    from loraserve.operator import ask as asking

    waiting = busy(f"waiting for {model}")
    if as_json:
        with waiting:
            answer = asking.ask_whole(url, key, model, prompt)
        print_json(answer)
        return
    pieces = asking.ask(url, key, model, prompt)
    with waiting:
        first = next(pieces, "")
    for piece in (first, *pieces):
        click.echo(piece, nl=False)
    click.echo()


@cli.command()
@key_option
@context_option
@json_option
def smoke(key: str, context: str | None, as_json: bool) -> int:
    """Check that a deployed stack does what it is for; exit code 1 where it does not.

    Pods, endpoints, health, an answer of the base model and of an adapter, Prometheus' targets. A sleeping model is woken.
    """
    from loraserve.operator import smoke as checks

    return _show(checks.run(Kubectl(context), key), as_json)


@cli.command()
@click.option(
    "--prometheus", "url", metavar="URL", help="Of any Prometheus (default: the stack's, by `kubectl port-forward`)."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=application_commands.DASHBOARD_PORT,
    show_default=True,
    help="Of this machine.",
)
@context_option
def dashboard(url: str | None, port: int, context: str | None) -> None:
    """Serve Grafana's dashboards, and the alerts that fire, as a page in a browser, without Grafana.

    It is served on this machine only, until Ctrl-C.
    """
    from loraserve.operator.dashboard_server import DashboardServer
    from loraserve.operator.prometheus import reached

    with reached(url, context) as prometheus, DashboardServer(prometheus, port) as server:
        tell(f"Open {server.url} (Ctrl-C ends it)")
        server.serve_forever()


@cli.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
@click.option("--address", metavar="IP", help="This machine's, as the cluster's API sees it (default: asked of AWS).")
@click.option("--policy", is_flag=True, help="Only print what whoever runs `up` must be allowed, as an IAM policy.")
@json_option
def preflight(stack: str, address: str | None, policy: bool, as_json: bool) -> int:
    """Check before `up` that it will work; exit code 1 where it will not.

    This machine, the state, the account and its quotas, every declared version in the bucket, the price. Changes nothing. Needs
    Pulumi, which runs the program's own checks, the same that `up` begins with.
    """
    if policy:
        from loraserve.planning import permissions

        print_json(permissions.policy_document(cluster_name(stack)))
        return 0

    from loraserve.operator import preflight as checks

    return _show(checks.run(stack, Path(), address), as_json)


def _show(checks: Iterable[Check], as_json: bool) -> int:
    """Each as it ends. The exit code: 1 where one failed."""
    found = []
    for check in checks:
        found.append(check)
        if not as_json:
            click.echo(f"{check.verdict.upper():<5} {check.name:<11} {check.found}")
    if as_json:
        print_json([asdict(check) for check in found])
    return int(any(check.verdict is CheckVerdict.FAIL for check in found))


@cli.command()
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
@click.option("--expires-at", metavar="TIME", help="Such as 2027-01-31T00:00:00Z (default: never).")
@json_option
def key(
    tenant: str,
    models: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    tokens_per_month: int | None,
    expires_at: str | None,
    as_json: bool,
) -> None:
    """Make an API key for TENANT, such as team-a.

    Shows the key once, on stderr, and prints the entry for the stack config's gatewayKeys, which holds only a digest.
    Rotate by adding a second entry, revoke by removing one.
    """
    from loraserve.contract.keys import create_key

    limits = (requests_per_minute, tokens_per_minute, expires_at, tokens_per_month)
    secret, entry = create_key(tenant, tuple(models.split(",")), *limits)
    if as_json:
        print_json({"key": secret, "entry": plain(entry)})
        return
    tell(f"The key, shown only now: {secret}\nAdd to the stack config's gatewayKeys:")
    click.echo(stack_config_entry(entry))


@cli.command()
@click.argument("stack")
def leftovers(stack: str) -> int:
    """Show what a stack has in AWS and not in its state, as the commands that delete it.

    STACK is such as dev; its file Pulumi.dev.yaml says which region and account. Reads a state from standard input (pulumi
    stack export --stack dev | loraserve leftovers dev), looks in AWS for what is not in it, and prints a shell script to
    read. Exit code 2: something is left.
    """
    from loraserve.operator.leftovers import show

    return 2 if show(stack, _piped(), Path()) else 0


@cli.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
def receipt(stack: str) -> int:
    """Before `destroy` write down what a stack has; after it say what is left of that, and what it has cost.

    Reads the state from standard input (pulumi stack export --stack dev | loraserve receipt --stack dev) and keeps
    receipt-dev.json here. The cost is an estimate: hours at list price. Exit code 2: something is left.
    """
    from loraserve.operator.receipt import run

    return 2 if run(stack, _piped(), Path()) else 0


@cli.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
@click.option("--context", metavar="NAME", help="A context of your kubeconfig (default: no cluster is asked).")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: loraserve-doctor-STACK.tar.gz."
)
def doctor(stack: str, context: str | None, output: Path | None) -> None:
    """Collect what a bug report needs, without secrets, into one archive.

    Versions and settings; with --context also what runs, events and the last logs. Read it before you send it.
    """
    from loraserve.operator import doctor as collecting

    target = output or Path(f"loraserve-doctor-{stack}.tar.gz")
    names = collecting.run(stack, Path(), Kubectl(context) if context else None, target)
    click.echo(
        f"{target}: {', '.join(names)}. Secrets were taken out as far as they can be told: read it before you send it."
    )


def _piped() -> str:
    return "" if sys.stdin.isatty() else sys.stdin.read()


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion of these commands.

    In ~/.bashrc or ~/.zshrc: eval "$(loraserve completion bash)"; in fish: loraserve completion fish | source
    """
    script = get_completion_class(shell)
    assert script
    click.echo(script(cli, {}, PROGRAM, _COMPLETION_VARIABLE).source())


@cli.command()
def agent() -> None:
    """Run the sidecar of one vLLM (settings come from the environment)."""
    from loraserve.agent.main import run  # `publish` needs none of the agent's libraries
    from loraserve.contract.agent_settings import AgentSettings

    settings = AgentSettings.from_environment(os.environ)
    log.configure(settings.log_format, "agent")
    run(settings)


@cli.command()
def start_cache_writer() -> None:
    """Publish what one vLLM has compiled, and print the stack-config entry (settings come from the environment)."""
    from loraserve.agent.start_cache_writer import write
    from loraserve.catalog.bucket import Bucket
    from loraserve.contract.start_cache_settings import StartCacheSettings

    settings = StartCacheSettings.from_environment(os.environ)
    log.configure(settings.log_format, "start-cache-writer")
    click.echo(stack_config_setting("startCache", write(settings, Bucket(settings.bucket))))


@cli.command()
def gateway() -> None:
    """Run the door in front of vLLM (settings come from the environment)."""
    from loraserve.contract.gateway_settings import GatewaySettings
    from loraserve.gateway.main import run  # an operator's shell needs none of the gateway's libraries

    settings = GatewaySettings.from_environment(os.environ)
    log.configure(settings.log_format, "gateway")
    run(settings)
