"""`runtime: python` by the stand-in language host, under the real CLI."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.engine.cli import Refused
from tests.engine.throwaway import Throwaway
from tests.waiting import eventually

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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Throwaway:
    return Throwaway(tmp_path_factory.mktemp("project"), PROGRAM, CONFIG)


def test_config_is_typed_by_the_project_file_and_secrets_stay_secret(project: Throwaway) -> None:
    project.set_secret("token", "hidden-value")

    printed = project.up().output

    assert project.outputs() == {"size": 3, "flag": True, "token": "hidden-value", "folder": str(project.project)}
    assert "hidden-value" not in project.state()
    assert "hidden-value" not in printed
    assert "a line of output" in printed
    assert "warning" not in printed


def test_a_value_of_the_wrong_type_is_refused_before_the_program_runs(project: Throwaway) -> None:
    project.configure(size="three")

    with pytest.raises(Refused, match="must be of type 'integer'"):
        project.up()


@pytest.mark.parametrize(
    ("mode", "message"), [("raise", "ValueError: broken on purpose"), ("run error", "say it once")]
)
def test_a_failing_program_is_reported_once(project: Throwaway, mode: str, message: str) -> None:
    project.configure(mode=mode)

    with pytest.raises(Refused) as failure:
        project.preview()

    diagnostics = str(failure.value).split("Diagnostics:")[1]
    assert diagnostics.count(message) == 1
    assert "runpy" not in diagnostics
    assert "exit code" not in diagnostics


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_engine(project: Throwaway, ending: signal.Signals) -> None:
    project.configure(mode="hang")
    started = project.project / "pid"
    started.unlink(missing_ok=True)
    engine = project.start("preview")
    program = _pid(started)
    assert _is_running(program)

    engine.send_signal(ending)
    if ending is signal.SIGINT:  # the first one asks politely, the second one means it
        assert engine.stdout
        next(line for line in engine.stdout if "^C received" in line)
        engine.send_signal(ending)
    engine.wait(timeout=30)

    eventually(lambda: not _is_running(program))


def _pid(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
