"""Pulumi's language host for Python, for a CLI that was built without one: `runtime: python` then works as it stands.

The program runs in a process of its own, under the Python of the project's virtual environment.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format
from pulumi.runtime import proto
from pulumi.runtime.proto import language_pb2, language_pb2_grpc

from local import commands
from local.stand_ins.provider import serve_plugin
from local.stand_ins.run_program import REPORTED

_RUNNER = Path(__file__).with_name("run_program.py")
_PACK_RUNNER = Path(__file__).with_name("run_policy_pack.py")


class EnvironmentMissingError(Exception):
    """The project's virtual environment is not there; the text says what to do."""


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Runs Pulumi programs; the engine's address is what `Run`'s programs log to."""

    def __init__(self, engine_address: str) -> None:
        self._engine_address = engine_address

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._engine_address = request.engine_address
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return proto.PluginInfo(version=metadata.version("pulumi"))

    def GetRequiredPlugins(self, request: Any, context: grpc.ServicerContext) -> Any:
        return language_pb2.GetRequiredPluginsResponse()

    def GetRequiredPackages(self, request: Any, context: grpc.ServicerContext) -> Any:
        return language_pb2.GetRequiredPackagesResponse()

    def RuntimeOptionsPrompts(self, request: Any, context: grpc.ServicerContext) -> Any:
        return language_pb2.RuntimeOptionsResponse()

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def About(self, request: Any, context: grpc.ServicerContext) -> Any:
        return language_pb2.AboutResponse(executable=sys.executable, version=platform.python_version())

    def GetProgramDependencies(self, request: Any, context: grpc.ServicerContext) -> Any:
        listing = commands.output([_python(request.info), "-m", "pip", "list", "--format", "json"])
        dependencies = [language_pb2.DependencyInfo(**package) for package in json.loads(listing)]
        return language_pb2.GetProgramDependenciesResponse(dependencies=dependencies)

    def InstallDependencies(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Makes the virtual environment where it is missing, and installs `requirements.txt` into it."""
        directory = Path(request.directory)
        home = _virtual_environment(request.info)
        if home and not (home / "bin" / "python").exists():
            yield _output(f"creating the virtual environment {home}\n")
            venv.create(home, with_pip=True)
        command = [_python(request.info), "-m", "pip", "install", "-r", "requirements.txt"]
        pip = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert pip.stdout
        yield from map(_output, pip.stdout)
        if pip.wait() != 0:
            context.abort(grpc.StatusCode.UNKNOWN, f"{' '.join(command)} failed in {directory}")

    def Run(self, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            # -P: the runner's neighbours are no modules of the program.
            command = [_python(request.info), "-P", "-u", str(_RUNNER)]
        except EnvironmentMissingError as error:
            return language_pb2.RunResponse(error=str(error))
        program = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=request.pwd, text=True)
        assert program.stdin
        context.add_callback(program.terminate)
        # The pipe stays open: its end tells the program that this host is gone.
        program.stdin.write(json.dumps(self._run_settings(request)) + "\n")
        program.stdin.flush()
        status = program.wait()
        if status == 0:
            return language_pb2.RunResponse()
        if status == REPORTED:
            return language_pb2.RunResponse(bail=True)
        return language_pb2.RunResponse(error=f"the program ended with exit code {status}")

    def RunPlugin(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Policy packs, the only plugins that are programs here; under the Python of this checkout, whatever environment they name."""
        if request.kind != "analyzer":
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"a plugin of kind {request.kind} as a program")
        command = [sys.executable, "-P", "-u", str(_PACK_RUNNER), *request.args, request.info.program_directory]
        variables = dict(variable.split("=", 1) for variable in request.env)
        pack = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=request.pwd, env=os.environ | variables
        )
        context.add_callback(pack.terminate)
        assert pack.stdout
        for line in pack.stdout:  # the first one is the port that it serves at
            yield language_pb2.RunPluginResponse(stdout=line)
        yield language_pb2.RunPluginResponse(exitcode=pack.wait())

    def _run_settings(self, request: Any) -> dict[str, Any]:
        return {
            "settings": {
                "project": request.project,
                "stack": request.stack,
                "organization": request.organization,
                "root_directory": request.info.root_directory,
                "parallel": request.parallel,
                "dry_run": request.dryRun,
                "monitor": request.monitor_address,
                "engine": self._engine_address,
            },
            "config": dict(request.config),
            "secret_keys": list(request.configSecretKeys),
            "program": os.path.normpath(os.path.join(request.info.program_directory, request.info.entry_point)),
            "arguments": list(request.args),
        }


def _virtual_environment(info: Any) -> Path | None:
    """The `virtualenv` option of Pulumi.yaml, which is relative to that file."""
    option = json_format.MessageToDict(info.options).get("virtualenv")
    return Path(info.root_directory, option) if option else None


def _python(info: Any) -> str:
    home = _virtual_environment(info)
    if home is None:
        return sys.executable
    python = home / "bin" / "python"
    if not python.exists():
        raise EnvironmentMissingError(
            f"the virtual environment of Pulumi.yaml, {home}, has no bin/python; `pulumi install` makes it"
        )
    return str(python)


def _output(text: str) -> Any:
    return language_pb2.InstallDependenciesResponse(stdout=text.encode())


def main() -> None:
    host = LanguageHost(sys.argv[-1])
    serve_plugin(lambda server: language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server))


if __name__ == "__main__":
    main()
