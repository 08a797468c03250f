"""One way to run a command to its end; what stays in the background is started by `local.processes`.

`output` returns what it prints, `logged` keeps that in a file, `shown` leaves it to the person who watches. All raise
CommandError where it fails or cannot be started. `env` is its whole environment; None is this process's own.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.processes import ProcessError, last_lines, tail

Command = Sequence[str | Path]

TRY_AGAIN = "Correct that, then run the same command again."


class CommandError(ProcessError):
    """The message names the command, ends with the tail of its output, and says the next step."""

    def __init__(self, command: Command, said: str, next_step: str) -> None:
        super().__init__(f"`{shlex.join(map(str, command))}` failed. {said}\n{next_step}")


def output(
    command: Command,
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    shows_errors: bool = False,
    next_step: str = TRY_AGAIN,
) -> str:
    """What it prints on standard output; with `shows_errors` the person sees its standard error as it comes."""
    streams = {"stdout": subprocess.PIPE, "stderr": None if shows_errors else subprocess.PIPE}
    done = _run(command, next_step, input=stdin, env=env, cwd=cwd, **streams)
    if done.returncode:
        said = "See above." if shows_errors else f"It said:\n{last_lines(done.stderr or done.stdout)}"
        raise CommandError(command, said, next_step)
    return done.stdout


def logged(
    command: Command,
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    next_step: str = TRY_AGAIN,
) -> None:
    """All that it prints goes to `log`, in the place of what was there."""
    with log.open("w") as file:
        done = _run(command, next_step, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=cwd)
    if done.returncode:
        raise CommandError(command, f"Its output, {log}, ends with:\n{tail(log)}", next_step)


def shown(
    command: Command,
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    next_step: str = TRY_AGAIN,
) -> None:
    """The person sees all that it prints."""
    if _run(command, next_step, input=stdin, env=env, cwd=cwd).returncode:
        raise CommandError(command, "See above.", next_step)


def succeeds(command: Command, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> bool:
    """Whether it ends well; what it prints is dropped."""
    try:
        output(command, env=env, cwd=cwd)
    except CommandError:
        return False
    return True


def _run(command: Command, next_step: str, **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, text=True, check=False, **options)
    except OSError as error:
        raise CommandError(command, f"It cannot be started: {error.strerror}.", next_step) from error
