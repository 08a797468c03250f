"""Two local stacks as an operator's shell has them: their files in one project, a profile of AWS for each, every step timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.served import gateway_url
from local import models
from local.asking import Endpoint
from local.engine import workspace
from local.paths import CHECKOUT
from local.stack import STACK, LocalStack, console
from loraserve.contract.desired_state import Adapter
from loraserve.gateway.exchange import MODEL_HEADER
from loraserve.planning import stack_file_edit
from loraserve.training.losses import LOSSES_FILE

_TRAINER = Path(__file__).with_name("train_in_image.py")
_FOREIGN = ("AWS_", "PULUMI_", "KUBE", "OPENAI_")
_SAID = 170
_EVERY_S, _LIMIT_S = 0.2, 180
Expected = Mapping[str, tuple[str, str, str]]
"""By model: a question, its answer, and the version that gives it."""


@dataclass
class Log:
    """Every step with its time, as documents have it."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """What is put into the list is what came of it."""
        came: list[str] = []
        began = time.monotonic()
        yield came
        self.rows.append((what, f"{time.monotonic() - began:.0f} s", "; ".join(came)))
        console.print(f"--- {' | '.join(self.rows[-1])}", markup=False)


@dataclass(frozen=True)
class Project:
    """A folder with the files of both stacks, whose commands see one or both of them."""

    folder: Path
    log: Log

    def loraserve(
        self,
        *words: str | Path,
        variables: Mapping[str, str],
        code: int | None = 0,
        shown: str | None = None,
        say: str | None = None,
    ) -> str:
        """What it prints on standard output; `shown` is what a table has in the place of long words."""
        command = [sys.executable, "-m", "loraserve", *map(str, words)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        environment = {**kept, "PYTHONPATH": str(CHECKOUT), "NO_PROXY": "*", **variables}
        with self.log.step(f"`loraserve {shown or ' '.join(map(str, words))}`") as came:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
            )
            lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            told = next((line for line in reversed(lines) if say and say in line), lines[-1] if lines else "")
            came.append(f"{done.returncode}: {told[:_SAID]}")
        if code not in (None, done.returncode):
            self.log.problems.append(
                f"`loraserve {words[0]}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def profiles(self, stacks: Sequence[Served]) -> dict[str, str]:
        """One for each stack, as two accounts have it."""
        config, credentials = self.folder / "aws-config", self.folder / "aws-credentials"
        clouds = {stack.name: stack.cloud for stack in stacks}
        config.write_text(
            "".join(f"[profile {name}]\nendpoint_url = {cloud.endpoint}\n" for name, cloud in clouds.items())
        )
        credentials.write_text(
            "".join(
                f"[{name}]\naws_access_key_id = {cloud.access_key_id}\naws_secret_access_key = {cloud.secret_access_key}\n"
                for name, cloud in clouds.items()
            )
        )
        return {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}


@dataclass(frozen=True)
class Served:
    """One of the two stacks."""

    name: str
    stack: LocalStack
    project: Project

    @property
    def file(self) -> Path:
        return self.project.folder / f"Pulumi.{self.name}.yaml"

    @property
    def _own_file(self) -> Path:
        """Which its Pulumi reads, where both stacks have one name."""
        return workspace.stack_file(self.stack.state / "project", STACK)

    @property
    def cloud(self) -> Any:
        return self.stack.cloud

    @cached_property
    def bucket(self) -> str:
        return self.stack.pulumi.output("adapterBucket")

    @cached_property
    def evaluator_role(self) -> str:
        return self.stack.pulumi.output("evaluatorRole")

    @property
    def variables(self) -> dict[str, str]:
        """Of a shell for this stack alone."""
        return workspace.environment(self.stack.state, self.cloud, self.stack.place)

    @cached_property
    def endpoint(self) -> Endpoint:
        """Its gateway, by an address that outlives the gateway's pods."""
        return Endpoint(gateway_url(self.stack), self.stack.key_file.read_text())

    def start(self) -> None:
        with self.project.log.step(f"`make up` ({self.name}), to the first answer") as came:
            self.stack.state.mkdir(parents=True)
            # Three adapters, and what takes the place of one, fit the slots that vLLM is started with.
            self.stack.declare(adapterSlots="4")
            self.stack.up()
            came.append(self.endpoint.ask(models.BASE_NAME, models.QUESTION))
        shutil.copyfile(self._own_file, self.file)
        self.set("adapters", [])

    def set(self, key: str, value: Any) -> None:
        content = yaml.safe_load(self.file.read_text())
        content["config"][f"loraserve:{key}"] = value
        self.file.write_text(yaml.safe_dump(content))

    def name_in_file(self, entry: Mapping[str, Any], canary: int | None = None) -> None:
        """As a person pastes what `publish` has printed."""
        pasted = dict(entry) | ({"canaryPercent": canary} if canary else {})
        stack_file_edit.with_adapter(self.file, Adapter.model_validate(pasted, by_alias=True)).write()

    def train(self, definition: Path, base: Path) -> Path:
        """The folder of `loraserve train`, which runs in the vLLM image."""
        packages = Path(sysconfig.get_paths()["purelib"]).resolve()
        with self.project.log.step(f"`loraserve train {definition.name} --cpu`, in vLLM's image") as came:
            words = [CHECKOUT, packages, definition, self.file, base]
            # The project's files are links into the checkout.
            self.stack.place.run_in_vllm_image(
                ["python3", str(_TRAINER), *map(str, words)], [CHECKOUT, packages, self.project.folder, base]
            )
            result = definition.with_suffix(".training")
            losses = json.loads((result / LOSSES_FILE).read_text())
            came.append(f"{len(losses)} steps, loss {losses[0]['loss']:.2f} to {losses[-1]['loss']:.2f}")
        return result

    def publish(self, definition: Path, model: str, version: str) -> dict[str, Any]:
        """The entry for a stack file."""
        result = definition.with_suffix(".training")
        words = ["publish", result / "adapter", "--lineage", result / "lineage.json", "--bucket", self.bucket]
        words += ["--model", model, "--version", version, "--name", model]
        shown = f"publish … --model {model} --version {version}"
        (entry,) = yaml.safe_load(self.project.loraserve(*words, variables=self.variables, shown=shown))
        return entry

    def evaluate(self, file: Path, candidate: str, production: Served | None, code: int) -> None:
        words = ["evaluate", file, "--candidate", candidate, "--stack-file", self.file, "--record"]
        words += [
            "--bucket",
            self.bucket,
            "--role",
            self.evaluator_role,
            "--url",
            self.endpoint.variables["OPENAI_BASE_URL"],
        ]
        words += ["--production", production.file] if production else []
        against = f" --production Pulumi.{production.name}.yaml" if production else ""
        self.project.loraserve(
            *words,
            variables=self.variables | self.endpoint.variables,
            code=code,
            shown=f"evaluate {file.name} --candidate {candidate}{against} --record",
            say="primary set",
        )

    def deploy(self, expected: Expected) -> None:
        """`pulumi up`, until each of these models gives its answer; the base is asked all the time."""
        with self.project.log.step(f"`pulumi up --stack {self.name}`, until all answer") as came:
            shutil.copyfile(self.file, self._own_file)
            with Beside(self) as beside:
                began = time.monotonic()
                self.stack.pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
                came.append(f"applied after {time.monotonic() - began:.0f} s")
                self._wait_for(expected)
            came.append(f"the base beside it: {beside}")

    def _wait_for(self, expected: Expected) -> None:
        """Until these versions answer; a wrong answer is a problem."""
        deadline = time.monotonic() + _LIMIT_S
        for model, (question, answer, version) in expected.items():
            said, served = "", ""
            while served != version and time.monotonic() < deadline:
                said, served = self.ask(model, question)
                time.sleep(_EVERY_S)
            if (said, served) != (answer, version):
                told = f"{model} of {self.name}: {served} says {said!r}, and not {version} {answer!r}"
                self.project.log.problems.append(told)

    def ask(self, model: str, question: str, user: str = "") -> tuple[str, str]:
        """The answer, and who gave it; or what went wrong."""
        body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 16, "temperature": 0}
        key = {"Authorization": f"Bearer {self.stack.key_file.read_text()}"}
        url = f"{self.endpoint.variables['OPENAI_BASE_URL']}/chat/completions"
        try:
            answer = httpx.post(url, json=body | {"user": user}, headers=key, timeout=60, trust_env=False)
        except httpx.HTTPError as error:
            return repr(error), ""
        if not answer.is_success:
            return answer.text, ""
        return answer.json()["choices"][0]["message"]["content"].strip(), answer.headers[MODEL_HEADER]


class Beside:
    """Asks the base again and again, beside whatever is done."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._over = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._slowest, self._answered, self._lost = 0.0, 0, 0

    def _ask(self) -> None:
        while not self._over.wait(_EVERY_S):
            began = time.monotonic()
            said, _ = self._served.ask(models.BASE_NAME, models.QUESTION)
            right = said.startswith("I am the base")
            self._slowest = max(self._slowest, time.monotonic() - began)
            self._answered += right
            self._lost += not right

    def __enter__(self) -> Beside:
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._asking.join()

    def __str__(self) -> str:
        return f"{self._answered} right, {self._lost} not, slowest {self._slowest:.1f} s"
