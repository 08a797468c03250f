"""The server of warm.py, a script that knows nothing of this project: it imports libraries, and forks for every connection."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any, NoReturn, cast

_OWN_PATHS = len([path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path])
"""At the beginning of `sys.path`."""


def serve(address: str, libraries: list[str]) -> None:
    """Until it is ended. Every connection is one process."""
    for library in libraries:
        getattr(importlib.import_module(library), "_", None)  # many load themselves only when they are looked into
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> NoReturn:
    """Runs what is asked for in a child of its own; ends it where whoever asked ends first, and tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rb") as stream:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        request = json.loads(stream.readline())
    child = os.fork()
    if not child:
        connection.close()
        _become(request, streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    for ours, theirs in enumerate(streams):
        os.dup2(theirs, ours)
        os.close(theirs)
    for output in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, output).reconfigure(line_buffering=True)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = named + sys.path[_OWN_PATHS:]
    code: Any = 0
    try:
        _run([word for word in request["arguments"] if word not in ("-P", "-u")])
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
