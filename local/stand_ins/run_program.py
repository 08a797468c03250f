"""Runs one Pulumi program for the language host: reads what to run from standard input, exits when that closes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import runpy
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

REPORTED = 32
"""Exit code of a program that failed and has told the user why."""


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_host, daemon=True).start()
    program = request["program"]
    sys.path.insert(0, program if os.path.isdir(program) else os.path.dirname(program))
    sys.argv = [program, *request["arguments"]]
    sys.exit(_run(request))


def _exit_with_host() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _run(request: dict[str, Any]) -> int:
    import pulumi
    from pulumi.runtime import resource
    from pulumi.runtime.proto import source_pb2

    # Half of a program's time: where in the source each resource is made, which nobody asks for here.
    resource._get_stack_trace = source_pb2.StackTrace
    pulumi.runtime.set_all_config(request["config"], request["secret_keys"])
    pulumi.runtime.configure(pulumi.runtime.Settings(**request["settings"]))
    # What a failed program leaves unawaited is reported by the program's own error.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        asyncio.run(_run_in_stack(request["program"], max(request["settings"]["parallel"], 1)))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
    except Exception as error:
        pulumi.log.error(f"Program failed with an unhandled exception:\n{_program_trace(error, request['program'])}")
    else:
        return 0
    sys.stdout.flush()
    return REPORTED


async def _run_in_stack(program: str, parallel: int) -> None:
    from pulumi.runtime import run_in_stack

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=4 * parallel))
    await run_in_stack(lambda: _execute(program))


def _execute(program: str) -> None:
    runpy.run_path(program, run_name="__main__")


def _program_trace(error: Exception, program: str) -> str:
    """The traceback from the program's first own frame on: what is above it is this runner and the SDK."""
    frame = error.__traceback__
    while frame and not frame.tb_frame.f_code.co_filename.startswith(program):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or error.__traceback__))


if __name__ == "__main__":
    main()
