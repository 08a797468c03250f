"""`runtime: python` by the stand-in language host, under the real CLI."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pulumi import automation

from tests.engine.throwaway import Throwaway, environment, pulumi_command

PROGRAM = """
    import os
    import pulumi

    config = pulumi.Config()
    print("a line of output")
    pulumi.export("size", config.require_int("size"))
    pulumi.export("flag", config.require_bool("flag"))
    pulumi.export("token", config.get_secret("token"))
    pulumi.export("folder", os.getcwd())
    match config.get("mode"):
        case "raise":
            raise ValueError("broken on purpose")
        case "run error":
            raise pulumi.RunError("say it once")
        case "hang":
            import time
            open("pid", "w").write(str(os.getpid()))
            time.sleep(600)
"""
CONFIG = {"size": {"type": "integer", "default": 3}, "flag": {"type": "boolean", "default": True}}


@pytest.fixture
def project(tmp_path: Path) -> Throwaway:
    return Throwaway.create(tmp_path, PROGRAM, CONFIG)


def test_config_is_typed_by_the_project_file_and_secrets_stay_secret(project: Throwaway) -> None:
    project.stack.set_config("token", automation.ConfigValue("hidden-value", secret=True))
    printed: list[str] = []

    project.stack.up(on_output=printed.append)

    outputs = project.outputs()
    assert outputs == {"size": 3, "flag": True, "token": "hidden-value", "folder": str(project.folder)}
    assert "hidden-value" not in project.state()
    assert "hidden-value" not in "\n".join(printed)
    assert "a line of output" in "\n".join(printed)
    assert "warning" not in "\n".join(printed)


def test_a_value_of_the_wrong_type_is_refused_before_the_program_runs(project: Throwaway) -> None:
    project.configure(size="three")

    with pytest.raises(automation.CommandError, match="must be of type 'integer'"):
        project.up()


@pytest.mark.parametrize(
    ("mode", "message"), [("raise", "ValueError: broken on purpose"), ("run error", "say it once")]
)
def test_a_failing_program_is_reported_once(project: Throwaway, mode: str, message: str) -> None:
    project.configure(mode=mode)
    printed: list[str] = []

    with pytest.raises(automation.CommandError) as failure:
        project.stack.preview(on_output=printed.append)

    diagnostics = str(failure.value).split("Diagnostics:")[1].split("stderr:")[0]
    assert diagnostics.count(message) == 1
    assert "runpy" not in diagnostics
    assert "exit code" not in diagnostics.split("Resources:")[0]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_engine(project: Throwaway, ending: signal.Signals) -> None:
    project.configure(mode="hang")
    engine = subprocess.Popen(
        [pulumi_command(project.folder), "up", "--stack", "dev", "--yes", "--non-interactive", "--skip-preview"],
        cwd=project.folder,
        env=os.environ | environment(project.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    program = _pid(project.folder / "pid")
    assert _is_running(program)

    engine.send_signal(ending)
    if ending is signal.SIGINT:  # the first one asks politely, the second one means it
        time.sleep(1)
        engine.send_signal(ending)
    engine.wait(timeout=30)

    _until(lambda: not _is_running(program))


def _pid(file: Path) -> int:
    _until(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
