"""This project's `local` stack on one machine: `make up`, `down`, `status`, `logs`, `ask`, `dashboard` and `traces`.

State lives in one folder, `$LORASERVE_STATE` or `$XDG_STATE_HOME/loraserve`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from infra import names
from infra.names import SERVING_NAMESPACE, VLLM
from local import commands, models
from local.asking import Endpoint, GatewayLost
from local.cluster import kubectl
from local.cluster.machine import Machine
from local.engine.cloud import CloudLostError
from local.processes import ProcessError, locked
from local.progress import console, say, step
from local.stack import LocalStack, state_folder
from local.tools.toolchain import Tool, ensure
from local.traces import PORT, collector, tree
from loraserve.errors import LoraserveError
from loraserve.operator.access.prometheus import Prometheus
from loraserve.operator.stack.dashboard_server import DashboardServer
from loraserve.operator.stack.stack_commands import DASHBOARD_PORT

_ATTEMPTS = 15
_SETTLED_S = 6
"""Gateway and vLLM send their spans within it."""


def up(stack: LocalStack, context: str | None) -> None:
    """Brings the stack up and asks the base model and every adapter the same question."""
    stack.up(context)
    kubeconfig = _kubeconfig(stack)
    with step("waiting for the first answer (vLLM takes about a minute to start)"):
        _first_answer(stack)
    console.print(f"\nThe local stack is up. The same question to each model ({models.QUESTION!r}):\n")
    with stack.endpoint() as served:
        for model in served.models():
            console.print(f"  {model:<24} {_answer(served, model)}", markup=False)
    with step("KEDA, which takes the model to zero and back (found, or built once)"):
        stack.place.start_scaling()
    console.print("\nHow to go on:")
    console.print("  make ask MODEL=faq PROMPT='Hello'         # ask more")
    console.print("  make status                               # what runs")
    console.print("  make logs                                 # of vLLM and its agent")
    console.print(
        "  make shell                                # `loraserve`, `kubectl`, `aws` and OpenAI's clients for it"
    )
    console.print(f"  export KUBECONFIG={kubeconfig}")
    console.print(f"  {ensure(Tool.KUBECTL)[Tool.KUBECTL]} get pods --all-namespaces")
    console.print(f"  Adapters and keys are declared in {stack.declared_file}: change it, then `make up` again.")
    console.print("  make down                                 # destroys it and shows that nothing is left")


def _first_answer(stack: LocalStack) -> None:
    """Pods that have just been rebooted are listed as ready a moment too long: what is lost then is asked again."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with stack.endpoint() as served:
                served.ask(models.BASE_NAME, models.QUESTION)
            return
        except GatewayLost as error:
            if attempt == _ATTEMPTS:
                raise
            console.print(f"    {error}; once more", markup=False)
            time.sleep(2)


def _answer(served: Endpoint, model: str) -> str:
    """One that does not answer, such as a quarantined adapter, says why; the others go on."""
    try:
        return served.ask(model, models.QUESTION)
    except ProcessError as error:
        return f"[{error}]"


def prepare(stack: LocalStack) -> None:
    """Builds what `up` needs on this machine, so that it starts at once; without root there is nothing to build for."""
    if os.geteuid():
        console.print("Without root there is no node on this machine: its images are not built.")
        return
    with step("tools and images (found, or built once; our image when it changed)"):
        Machine(stack.state).prepare(say)


def down(stack: LocalStack) -> None:
    """Destroys the stack, stops everything, removes the state, and shows a receipt."""
    if not stack.state.exists():
        console.print("Nothing to do: there is no local stack.")
        return
    left = stack.down()
    console.print(f"  left behind: {', '.join(left) or 'nothing'}")
    if left:
        raise SystemExit("something was left behind; it is named above, please report it")


def status(stack: LocalStack) -> None:
    """Says what runs and what the stack put out."""
    place, cloud = stack.place, stack.cloud
    missing = "not there (`make up` starts it)"
    for part, state in (place.status() | {"AWS": "runs" if cloud else missing}).items():
        console.print(f"{part + ':':<12}{state}")
    if cloud and place.running:
        console.print(f"Resources:  {stack.pulumi.resource_count()}")
        stack.pulumi.show("status")
        console.print("What the stack put out:")
        stack.pulumi.run("stack", "output")


def logs(stack: LocalStack) -> None:
    """The logs of vLLM and its agent, as they come."""
    kubeconfig = _kubeconfig(stack)
    of_vllm = ["--namespace", SERVING_NAMESPACE, "--selector", f"app={VLLM}"]
    if not kubectl.kubectl(kubeconfig, "get", "pods", *of_vllm, "--output", "name").strip():
        console.print("No pod of vLLM: the model sleeps, and a request wakes it (`make ask MODEL=faq PROMPT='Hello'`).")
        return
    pods = ["logs", *of_vllm, "--all-containers"]
    commands.shown(kubectl.command(kubeconfig, *pods, "--prefix", "--tail=200", "--follow"))


def ask(stack: LocalStack, model: str, prompt: str) -> None:
    """One answer."""
    with stack.endpoint() as served:
        print(served.ask(model, prompt))


def shell(stack: LocalStack, command: Sequence[str]) -> int:
    """A shell for this stack, as publishers, operators and applications have it on AWS; returns its exit code."""
    with stack.endpoint() as served:
        if not command:
            console.print(
                "In this shell `loraserve`, `kubectl`, `pulumi`, `aws` and OpenAI's clients mean the local stack; `exit` leaves it.\n"
                '  loraserve check FOLDER --stack-file "$STACK_FILE"\n'
                '  loraserve publish FOLDER --stack-file "$STACK_FILE" --bucket "$BUCKET" --model mine --version v1 --name mine\n'
                '  then paste the entry into "$DECLARED" and run `make up`',
                markup=False,
            )
        bucket = stack.pulumi.output("adapterBucket")
        variables = served.variables | {"BUCKET": bucket, "DECLARED": str(stack.declared_file)}
        return stack.pulumi.shell(command or [os.environ.get("SHELL", "/bin/sh")], variables)


def dashboard(stack: LocalStack, port: int) -> None:
    """Prometheus and Alertmanager, which stay until `down`, and a page of what they know, until Ctrl-C."""
    with step("Prometheus and Alertmanager (found, or built once)"):
        monitoring = stack.monitor()
    console.print(f"  Prometheus:   {monitoring.prometheus}\n  Alertmanager: {monitoring.alertmanager}")
    with DashboardServer(Prometheus(monitoring.prometheus), port) as server:
        console.print(f"  Open {server.url} (Ctrl-C ends the page; first lines come after two looks, a minute)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def traces(stack: LocalStack, port: int) -> None:
    """A collector on the address that pods reach this machine by, and each request's spans as a tree, until Ctrl-C."""
    if not stack.place.running:
        raise ProcessError("The local stack does not run; `make up` starts it.")
    shown: set[str] = set()
    with collector(stack.place.address, port) as found, suppress(KeyboardInterrupt):
        if stack.declared.get(f"{names.PROJECT}:tracesEndpoint") != found.url:
            console.print(
                f"  Set `{names.PROJECT}:tracesEndpoint: {found.url}` in {stack.declared_file}, then `make up`."
            )
        while True:
            with found.arrived:
                found.arrived.wait(_SETTLED_S)
            for trace in found.settled(_SETTLED_S) - shown:
                shown.add(trace)
                console.print("\n".join(tree(found.trace(trace))), markup=False, soft_wrap=True)


def _kubeconfig(stack: LocalStack) -> Path:
    """Of the cluster that serves. Raises ProcessError."""
    if not stack.place.running:
        raise ProcessError("The local stack does not run; `make up` starts it.")
    return stack.place.kubeconfig


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="local", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "down", "status", "logs"):
        verbs.add_parser(verb)
    verbs.add_parser("up").add_argument("--context", help="of your kubeconfig: a cluster of your own (kind, k3d)")
    asking = verbs.add_parser("ask")
    asking.add_argument("--model", required=True)
    asking.add_argument("--prompt", required=True)
    verbs.add_parser("shell").add_argument("command", nargs="*", help="run this and leave")
    verbs.add_parser("dashboard").add_argument("--port", type=int, default=DASHBOARD_PORT)
    verbs.add_parser("traces").add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    stack = LocalStack(state_folder())
    try:
        match options.verb:
            case "up" | "down":
                lock = stack.state.with_suffix(".lock")
                lock.parent.mkdir(parents=True, exist_ok=True)
                with locked(lock, lambda: console.print("waiting for another `make up` or `make down` to end ...")):
                    up(stack, options.context) if options.verb == "up" else down(stack)
            case "prepare":
                prepare(stack)
            case "status":
                status(stack)
            case "logs":
                logs(stack)
            case "shell":
                sys.exit(shell(stack, options.command))
            case "dashboard":
                dashboard(stack, options.port)
            case "traces":
                traces(stack, options.port)
            case _:
                ask(stack, options.model, options.prompt)
    except (ProcessError, CloudLostError, LoraserveError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
