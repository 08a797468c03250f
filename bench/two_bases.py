"""Two base models on one node: a second stack in the first one's cluster (`clusterStack`), and what its end leaves of the first.

Each base answers with a sentence of its own. Both are asked at once; then the second stack is destroyed while the first is
asked without a pause, and nothing of the second may be left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from bench import report
from bench.served import machine
from infra.names import PROJECT, SERVING_NAMESPACE
from infra.standing import OF
from local import models
from local.asking import Endpoint, endpoint
from local.engine import receipt, workspace
from local.engine.pulumi_cli import PulumiCli
from local.processes import ProcessError
from local.progress import step
from local.stack import STACK, LocalStack
from loraserve.contract.keys import EVERY_MODEL, create_key

SECOND = "second"
SECOND_BASE = "loraserve/tiny-second"
SECOND_SERVED = "second@v1"
"""The adapter that the second base model has in it."""
_ANSWERS = {models.BASE_NAME: "I am the base model.", SECOND_BASE: "I am second v1."}
_OF_THE_FIRST = ("adapters", "baseModelMirror", "gatewayKeys")
_START_S = 600
_MERGE = Path(__file__).with_name("merged_in_vllm.py")


class SecondBase:
    """A stack of the same project, in the cluster of the first."""

    namespace = f"{SERVING_NAMESPACE}{OF}{SECOND}"

    def __init__(self, host: LocalStack, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self._key, entry = create_key(SECOND, (EVERY_MODEL,), requests_per_minute=None)
        self._entry = entry.model_dump(mode="json", by_alias=True, exclude_none=True)

    @cached_property
    def _pulumi(self) -> PulumiCli:
        assert self._host.cloud
        return PulumiCli(self._host.state, SECOND, self._host.cloud, self._host.place)

    def up(self) -> None:
        self._pulumi.take_over()
        with step(f"pulumi up --stack {SECOND} (without the model: it makes the bucket)"):
            self._apply(inferenceReplicas=0)
        with step("another base model: the first one with an adapter in it, mirrored"):
            mirror = self._mirror()
        with step(f"pulumi up --stack {SECOND}"):
            self._apply(baseModelMirror=mirror)

    def _apply(self, **settings: Any) -> None:
        project = self._host.state / "project"
        first: dict[str, Any] = yaml.safe_load((project / f"Pulumi.{STACK}.yaml").read_text())["config"]
        shared = {key: value for key, value in first.items() if key.removeprefix(f"{PROJECT}:") not in _OF_THE_FIRST}
        own = {"clusterStack": STACK, "baseModel": SECOND_BASE, "gatewayKeys": [self._entry], **settings}
        workspace.write_stack_file(project, SECOND, shared | {f"{PROJECT}:{key}": value for key, value in own.items()})
        self._pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")

    def _mirror(self) -> dict[str, Any]:
        run = self._host.place.run_in_vllm_image
        base, (adapter,) = models.base(run), self._host.train(SECOND_SERVED).values()
        self._folder.mkdir()
        run(
            ["python3", str(_MERGE), str(base), str(adapter), str(self._folder)],
            [_MERGE.parent, base.parent, self._folder],
        )
        bucket = self._pulumi.output("adapterBucket")
        words = ("--bucket", bucket, "--model", SECOND_BASE, "--version", "v1")
        return self._pulumi.loraserve("mirror", str(self._folder), *words)[f"{PROJECT}:baseModelMirror"]

    def endpoint(self) -> Any:
        return endpoint(self._host.place.kubeconfig, self._key, self.namespace)

    def destroy(self) -> list[str]:
        """What is left of it."""
        with step(f"pulumi destroy --stack {SECOND}"):
            self._pulumi.run("destroy", "--yes", "--skip-preview")
        assert self._host.cloud
        core = client.CoreV1Api(config.new_client_from_config(str(self._host.place.kubeconfig)))
        names = [namespace.metadata.name for namespace in core.list_namespace().items if namespace.metadata]
        left = receipt.left_in_aws(SECOND, self._host.cloud)
        return left + [f"namespace {name}" for name in names if name == self.namespace]


def main() -> None:
    """Exit code 1 where an answer is wrong or lost, or something of the second stack is left."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        first = LocalStack(Path(folder) / "state")
        second = SecondBase(first, Path(folder) / "second-base")
        try:
            first.up()
            node = machine(first).node
            assert node
            node.offer_gpus(2)
            second.up()
            with first.endpoint() as one, second.endpoint() as other:
                served = {models.BASE_NAME: one, SECOND_BASE: other}
                applied = time.monotonic()
                for name in _ANSWERS:
                    _wait_for_an_answer(served[name], name)
                waited = time.monotonic() - applied
                problems += _ask_at_once(served)
                listed = {name: served[name].models() for name in served}
            with _asked_without_a_pause(first) as (answered, lost):
                began = time.monotonic()
                left = second.destroy()
                took = time.monotonic() - began
            problems += [*lost, *(f"left: {what}" for what in left)]
        finally:
            first.down()
    figures = {
        "models of the first, of the second": "; ".join(", ".join(names) for names in listed.values()),
        "both have answered, after the second's `up`": f"{waited:.0f} s",
        "destroy of the second": f"{took:.0f} s",
        "answers of the first meanwhile, lost or wrong": f"{len(answered)}, {len(lost)}",
        "left of the second": ", ".join(left) or "nothing",
    }
    report.show(figures, problems)
    sys.exit(bool(problems))


def _wait_for_an_answer(served: Endpoint, name: str) -> None:
    ends = time.monotonic() + _START_S
    while True:
        try:
            served.ask(name, models.QUESTION)
        except ProcessError:
            if time.monotonic() > ends:
                raise
            time.sleep(2)
        else:
            return


def _ask_at_once(served: dict[str, Endpoint]) -> list[str]:
    names = [*served] * 10
    with ThreadPoolExecutor(4) as clients:
        said = clients.map(lambda name: served[name].ask(name, models.QUESTION), names)
        return [f"{name}: {words!r}" for name, words in zip(names, said, strict=True) if words != _ANSWERS[name]]


@contextmanager
def _asked_without_a_pause(stack: LocalStack) -> Iterator[tuple[list[str], list[str]]]:
    """Right answers, and what was lost or wrong."""
    answered: list[str] = []
    lost: list[str] = []
    enough = threading.Event()
    with stack.endpoint() as served:
        asking = threading.Thread(target=_keep_asking, args=(served, answered, lost, enough.is_set))
        asking.start()
        try:
            yield answered, lost
        finally:
            enough.set()
            asking.join()


def _keep_asking(served: Endpoint, answered: list[str], lost: list[str], enough: Callable[[], bool]) -> None:
    while not enough():
        try:
            said = served.ask(models.BASE_NAME, models.QUESTION)
        except ProcessError as error:
            lost.append(str(error))
        else:
            (answered if said == _ANSWERS[models.BASE_NAME] else lost).append(said)


if __name__ == "__main__":
    main()
