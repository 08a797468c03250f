"""Commands that are run to their end: what they print, and one error that says what to do where they fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local import commands
from local.commands import CommandError
from local.processes import ProcessError

FAILS = ["sh", "-c", "seq 100; echo no space left >&2; exit 3"]


def test_what_it_prints_is_returned_and_its_input_given() -> None:
    assert commands.output(["cat"], stdin="some text") == "some text"


def test_the_environment_is_replaced(tmp_path: Path) -> None:
    assert commands.output(["/usr/bin/env"], env={"A": "b"}, cwd=tmp_path).splitlines() == ["A=b"]


def test_a_log_holds_what_the_last_command_printed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("first", "second"):
        commands.logged(["sh", "-c", f"echo {word}; echo {word} >&2"], log)
    assert log.read_text() == "second\nsecond\n"


@pytest.mark.parametrize(
    ("run", "tail"),
    [
        (lambda _: commands.output(FAILS), "It said:\nno space left\n"),
        (lambda folder: commands.logged(FAILS, folder / "log"), "/log, ends with:\n82\n"),
        (lambda _: commands.shown(FAILS), "See above.\n"),
        (lambda _: commands.output(FAILS, shows_errors=True), "See above.\n"),
    ],
    ids=["output", "logged", "shown", "output beside errors"],
)
def test_a_failure_names_the_command_its_last_lines_and_the_next_step(
    run: Callable[[Path], object], tail: str, tmp_path: Path
) -> None:
    with pytest.raises(CommandError) as failed:
        run(tmp_path)
    message = str(failed.value)
    assert message.startswith("`sh -c 'seq 100; echo no space left >&2; exit 3'` failed. ")
    assert tail in message
    assert message.endswith("\nCorrect that, then run the same command again.")


def test_what_has_no_place_on_standard_error_is_told_from_standard_output() -> None:
    with pytest.raises(CommandError, match="told here"):
        commands.output(["sh", "-c", "echo told here; exit 1"])


def test_the_next_step_is_the_callers_where_it_knows_a_better_one() -> None:
    with pytest.raises(CommandError, match=r"Check that the mirror answers\.$"):
        commands.output(["false"], next_step="Check that the mirror answers.")


def test_a_missing_program_is_named_by_the_error_that_every_caller_expects() -> None:
    with pytest.raises(ProcessError, match=r"`no-such-program --now` failed\. It cannot be started: No such file"):
        commands.output(["no-such-program", "--now"])


def test_success_can_be_asked_for_alone() -> None:
    assert commands.succeeds(["true"])
    assert not commands.succeeds(["false"])
    assert not commands.succeeds(["no-such-program"])


def test_what_is_shown_reaches_the_person() -> None:
    program = "from local import commands; commands.shown(['sh', '-c', 'cat; echo progress >&2'], stdin='result')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result", "progress\n")
