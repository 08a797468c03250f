"""The `docker-build` provider on a machine without a builder: checks the build's inputs, builds and pushes nothing.

The digest is computed over what the build would read, so a changed file gives a changed image reference.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from local.stand_ins.provider import (
    InvalidInput,
    Properties,
    Provider,
    ReadResult,
    ResourceType,
    contains_unknown,
    serve,
)

_INTO_DIGEST = ("buildArgs", "contextHash", "platforms")


class Image(ResourceType):
    """`docker-build:index:Image`. Outputs: `ref` (`repository@sha256:...`), `digest`, `contextHash`."""

    token = "docker-build:index:Image"
    required = frozenset({"context", "push"})
    optional = frozenset(
        {"buildArgs", "buildOnPreview", "contextHash", "dockerfile", "network", "platforms", "registries", "tags"}
    )

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        # Registry credentials change with every run: they are no part of the image.
        news = {key: value for key, value in news.items() if key != "registries"}
        inputs = super().check(name, news, olds, seed)
        if inputs["push"] is True and not inputs.get("tags"):
            raise InvalidInput("tags", "an image that is pushed needs a tag that names its repository")
        if contains_unknown([inputs["context"], inputs.get("dockerfile")]):
            return inputs
        return inputs | {"contextHash": _context_hash(inputs["context"], inputs.get("dockerfile") or {})}

    def preview(self, inputs: Properties, outputs: Properties) -> Properties:
        known = not contains_unknown([inputs.get("tags"), *(inputs.get(key) for key in _INTO_DIGEST)])
        return _outputs(inputs) if known and "contextHash" in inputs else inputs

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        outputs = _outputs(inputs)
        return outputs["digest"], outputs

    def read(self, resource_id: str, inputs: Properties, outputs: Properties) -> ReadResult | None:
        return ReadResult(inputs, outputs)

    def update(self, resource_id: str, olds: Properties, news: Properties, outputs: Properties) -> Properties:
        return _outputs(news)

    def delete(self, resource_id: str, inputs: Properties, outputs: Properties) -> None:
        """Nothing was pushed."""


def _outputs(inputs: Properties) -> Properties:
    built_from = json.dumps({key: inputs.get(key) for key in _INTO_DIGEST}, sort_keys=True)
    digest = f"sha256:{hashlib.sha256(built_from.encode()).hexdigest()}"
    repository = re.sub(r":[^:/]*$", "", (inputs.get("tags") or ["image"])[0])
    return inputs | {"digest": digest, "ref": f"{repository}@{digest}"}


def _context_hash(context: Properties, dockerfile: Properties) -> str:
    """A digest over the Dockerfile, and name, mode and content of each file that no ignore file leaves out, as the real one."""
    root = Path(context.get("location", "."))
    if not root.is_dir():
        raise InvalidInput("context.location", f"{root.resolve()} is not a directory")
    digest = hashlib.sha256()
    if "inline" in dockerfile:
        digest.update(dockerfile["inline"].encode())
        ignored = _ignore_rules(root / ".dockerignore")
    else:
        location = Path(dockerfile.get("location") or root / "Dockerfile")
        if not location.is_file():
            raise InvalidInput("dockerfile.location", f"{location.resolve()} is not a file")
        digest.update(location.read_bytes())
        own = location.with_name(location.name + ".dockerignore")
        ignored = _ignore_rules(own if own.is_file() else root / ".dockerignore")
    for path in sorted(_files(root, ignored)):
        mode = stat.filemode(path.stat().st_mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root)}\0{mode}\0{content}\n".encode())
    return digest.hexdigest()


class _IgnoreRules:
    """A `.dockerignore` file: the last pattern that matches decides, `!` takes a path back in."""

    def __init__(self, patterns: list[str]) -> None:
        self._rules = [(pattern.startswith("!"), _pattern(pattern.lstrip("!"))) for pattern in patterns]
        self._taken_back = [pattern.lstrip("!").strip("/") for pattern in patterns if pattern.startswith("!")]

    def ignores(self, path: str) -> bool:
        ignored = False
        for taken_back, pattern in self._rules:
            if pattern.fullmatch(path):
                ignored = not taken_back
        return ignored

    def skips_directory(self, path: str) -> bool:
        """Whether nothing below an ignored directory can be taken back in."""
        reachable = any(taken.startswith((f"{path}/", "*")) for taken in self._taken_back)
        return self.ignores(path) and not reachable


def _ignore_rules(path: Path) -> _IgnoreRules:
    lines = path.read_text().splitlines() if path.is_file() else []
    return _IgnoreRules([line.strip() for line in lines if line.strip() and not line.startswith("#")])


def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern matches a path, and all that lies below it. `**` spans directories, `*` and `?` do not."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.strip("/"))
    return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def _files(root: Path, rules: _IgnoreRules) -> Iterator[Path]:
    for folder, directories, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        directories[:] = [name for name in directories if not rules.skips_directory(prefix + name)]
        yield from (Path(folder, name) for name in files if not rules.ignores(prefix + name))


if __name__ == "__main__":
    serve(
        Provider(
            name="docker-build",
            version=metadata.version("pulumi-docker-build"),
            resources={Image.token: Image()},
        )
    )
