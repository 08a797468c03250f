"""This project's `local` stack on one machine: `make up`, `down`, `status`, `logs` and `ask`.

State lives in one folder, `$LORASERVE_STATE` or `$XDG_STATE_HOME/loraserve`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from infra.names import SERVING_NAMESPACE, VLLM
from local import models
from local.cloud import CloudLostError
from local.control_plane import ControlPlane
from local.processes import ProcessError, locked
from local.stack import LocalStack, console, state_folder, step
from local.toolchain import Tool, ToolchainError, ensure


def up(stack: LocalStack) -> None:
    """Brings the stack up and asks the base model and every adapter the same question."""
    stack.up()
    control_plane = _running(stack)
    with step("waiting for the first answer (vLLM takes about a minute to start)"), stack.endpoint() as served:
        served.ask(models.BASE_NAME, models.QUESTION)
    console.print(f"\nThe local stack is up. The same question to each model ({models.QUESTION!r}):\n")
    with stack.endpoint() as served:
        for model in served.models():
            console.print(f"  {model:<24} {served.ask(model, models.QUESTION)}")
    kubectl = ensure(Tool.KUBECTL)[Tool.KUBECTL]
    console.print("\nHow to go on:")
    console.print("  make ask MODEL=faq PROMPT='Hello'         # ask more")
    console.print("  make status                               # what runs")
    console.print("  make logs                                 # of vLLM and its agent")
    console.print(f"  export KUBECONFIG={control_plane.kubeconfig}")
    console.print(f"  {kubectl} get pods --all-namespaces")
    console.print(f"  Adapters and keys are declared in {stack.declared_file}: change it, then `make up` again.")
    console.print("  make down                                 # destroys it and shows that nothing is left")


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
    control_plane, cloud, node = stack.control_plane, stack.cloud, stack.node
    stopped = control_plane.stopped_parts if control_plane else []
    cluster = f"stopped: {', '.join(stopped)} (`make up` repairs it)" if stopped else "runs"
    missing = "not there (`make up` starts it)"
    console.print(f"Kubernetes: {cluster if control_plane else missing}")
    console.print(f"Node:       {'runs' if node and node.running else missing}")
    console.print(f"AWS:        {'runs' if cloud else missing}")
    if cloud and control_plane and not stopped:
        console.print(f"Resources:  {stack.pulumi.resource_count()}")
        stack.pulumi.run("stack", "output")


def logs(stack: LocalStack) -> None:
    """The logs of vLLM and its agent, as they come."""
    kubectl = str(ensure(Tool.KUBECTL)[Tool.KUBECTL])
    place = ["--kubeconfig", str(_running(stack).kubeconfig), "--namespace", SERVING_NAMESPACE]
    which = ["--selector", f"app={VLLM}", "--all-containers", "--prefix", "--tail=200", "--follow"]
    subprocess.call([kubectl, *place, "logs", *which])


def ask(stack: LocalStack, model: str, prompt: str) -> None:
    """One answer."""
    with stack.endpoint() as served:
        print(served.ask(model, prompt))


def _running(stack: LocalStack) -> ControlPlane:
    control_plane = stack.control_plane
    if not control_plane or control_plane.stopped_parts:
        raise ProcessError("The local stack does not run; `make up` starts it.")
    return control_plane


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="local", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down", "status", "logs"):
        verbs.add_parser(verb)
    asking = verbs.add_parser("ask")
    asking.add_argument("--model", required=True)
    asking.add_argument("--prompt", required=True)
    options = parser.parse_args()
    stack = LocalStack(state_folder())
    try:
        match options.verb:
            case "up" | "down":
                lock = stack.state.with_suffix(".lock")
                lock.parent.mkdir(parents=True, exist_ok=True)
                with locked(lock, lambda: console.print("waiting for another `make up` or `make down` to end ...")):
                    (up if options.verb == "up" else down)(stack)
            case "status":
                status(stack)
            case "logs":
                logs(stack)
            case _:
                ask(stack, options.model, options.prompt)
    except (ToolchainError, ProcessError, CloudLostError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
