"""`loraserve`: what an operator and the pod run."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loraserve import log
from loraserve.contract.addresses import SERVING_NAMESPACE
from loraserve.errors import LoraserveError
from loraserve.operator import catalog_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 after a clear error on stderr (2 for wrong usage, by argparse; see also `leftovers`)."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except LoraserveError as error:
        print(f"loraserve: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"loraserve: {error.name} is missing here: pip install 'loraserve[server]'", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loraserve", description="Serve many LoRA adapters on one base model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    catalog_commands.add_to(commands)

    agent = commands.add_parser("agent", help="run the sidecar of one vLLM (settings come from the environment)")
    agent.set_defaults(command=_agent)

    gateway = commands.add_parser("gateway", help="run the door in front of vLLM (settings come from the environment)")
    gateway.set_defaults(command=_gateway)

    key = commands.add_parser(
        "key",
        help="make an API key for a tenant",
        description="Shows the key once, on stderr, and prints the entry for the stack config's gatewayKeys, which holds "
        "only a digest. Rotate by adding a second entry, revoke by removing one.",
    )
    key.add_argument("tenant", help="whose key it is, such as team-a")
    key.add_argument(
        "--models", nargs="+", default=["*"], metavar="NAME", help="what it may call (default: everything)"
    )
    key.add_argument("--requests-per-minute", type=int, metavar="N", help="over all replicas (default: unlimited)")
    key.set_defaults(command=_key)

    status = commands.add_parser(
        "status",
        help="show what every vLLM pod holds",
        description="Shows every pod's adapters, their state and last use. The cluster is the one that kubectl talks to.",
    )
    status.add_argument("--namespace", default=SERVING_NAMESPACE, help="where vLLM runs (default: %(default)s)")
    status.set_defaults(command=_status)

    leftovers = commands.add_parser(
        "leftovers",
        help="show what a stack has in AWS and not in its state, as the commands that delete it",
        description="Reads a state from standard input (pulumi stack export --stack dev | python -m loraserve leftovers dev), "
        "looks in AWS for what is not in it, and prints a shell script to read. Exit code 2: something is left.",
    )
    leftovers.add_argument("stack", help="such as dev; its file Pulumi.dev.yaml says which region and account")
    leftovers.set_defaults(command=_leftovers)
    return parser


def _agent(_: argparse.Namespace) -> None:
    from loraserve.agent.main import run  # `publish` needs none of the agent's libraries
    from loraserve.contract.agent_settings import AgentSettings

    log.configure()
    run(AgentSettings.from_environment(os.environ))


def _gateway(_: argparse.Namespace) -> None:
    from loraserve.contract.gateway_settings import GatewaySettings
    from loraserve.gateway.main import run  # an operator's shell needs none of the gateway's libraries

    log.configure()
    run(GatewaySettings.from_environment(os.environ))


def _key(options: argparse.Namespace) -> None:
    from loraserve.contract.keys import create_key

    key, entry = create_key(options.tenant, tuple(options.models), options.requests_per_minute)
    print(f"The key, shown only now: {key}\nAdd to the stack config's gatewayKeys:", file=sys.stderr)
    print(catalog_commands.stack_config_entry(entry))


def _status(options: argparse.Namespace) -> None:
    from loraserve.operator.status import show

    show(options.namespace)


def _leftovers(options: argparse.Namespace) -> int:
    from loraserve.operator.leftovers import show

    export = "" if sys.stdin.isatty() else sys.stdin.read()
    return 2 if show(options.stack, export, Path()) else 0
