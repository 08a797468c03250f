"""checkov, kubeconform and kube-score over the objects of several stacks, checkov over the Containerfiles: `make scan`.

What it finds stands in docs/scanners.md with its reason, and nothing stands there that it does not find.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from local.cluster.control_plane import ControlPlane
from local.paths import CHECKOUT, cache_dir
from local.tools import versions
from local.tools.toolchain import Tool, ensure
from tests import openapi_schemas
from tests.manifests import manifests
from tests.unit.declared import declare
from tests.unit.test_policy import PROGRAMS

DOCUMENT = CHECKOUT / "docs" / "scanners.md"
CHECKOV = "checkov==3.3.30"
_WARNING = 5
"""kube-score's grades: 1 is critical, 5 a warning, 7 and 10 are well."""
Finding = tuple[str, str, str]
"""Scanner, check, object (`Kind/name`, or a file)."""


def main() -> None:
    """Prints every finding that is not explained and every explanation of nothing; exit code 1 where there is one."""
    objects = [one for stack, settings in PROGRAMS.items() for one in manifests(declare(stack, **settings))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "objects.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        found = {*in_objects(file), *in_containerfiles(), *not_valid(file, Path(folder)), *scored(file)}
    explained = documented()
    problems = [f"not explained in {DOCUMENT.name}: {' '.join(one)}" for one in sorted(found - explained)]
    problems += [f"explained in {DOCUMENT.name}, but not found: {' '.join(one)}" for one in sorted(explained - found)]
    print(f"{len(objects)} objects of {len(PROGRAMS)} stacks; {len(found)} findings, {len(explained)} explained")
    print("\n".join(problems))
    sys.exit(bool(problems))


def documented(document: Path = DOCUMENT) -> set[Finding]:
    """Its tables' rows: scanner, check, objects with commas between them, and why."""
    rows = re.findall(r"^\| (\S+) \| `(\S+)` \| (.+?) \| .+ \|$", document.read_text(), flags=re.MULTILINE)
    return {(scanner, check, one) for scanner, check, named in rows for one in named.split(", ")}


def in_objects(file: Path) -> Iterator[Finding]:
    for failed in _checkov("--framework", "kubernetes", "--file", str(file)):
        kind, *_, name = failed["resource"].split(".")
        yield "checkov", failed["check_id"], _object(kind, name)


def not_valid(file: Path, folder: Path) -> Iterator[Finding]:
    """By the schemas of the API server that the local stack runs, its custom resources among them."""
    schemas = folder / "schemas"
    schemas.mkdir()
    with ControlPlane.start(folder / "cluster", die_with_parent=True) as plane:
        print(f"{openapi_schemas.write(plane.kubeconfig, schemas)} kinds of Kubernetes {versions.KUBERNETES}")
    place = ["-schema-location", f"{schemas}/{openapi_schemas.NAMES}"]
    for one in _json(Tool.KUBECONFORM, "-strict", *place, "-output", "json", str(file)).get("resources") or []:
        print(f"kubeconform: {one['kind']}/{one['name']}: {one['msg']}")
        yield "kubeconform", one["status"], f"{one['kind']}/{one['name']}"


def scored(file: Path) -> Iterator[Finding]:
    """kube-score's warnings and critical ones."""
    for one in _json(Tool.KUBE_SCORE, "score", "--output-format", "json", str(file)):
        for check in one["checks"]:
            if not check["skipped"] and check["grade"] <= _WARNING:
                yield "kube-score", check["check"]["id"], _object(one["type_meta"]["kind"], one["object_meta"]["name"])


def _object(kind: str, name: str) -> str:
    """A Job's name ends with a hash of what it does."""
    return f"{kind}/{re.sub(r'-[0-9a-f]{8}$', '', name)}"


def _json(tool: Tool, *words: str) -> Any:
    """Their exit codes tell only whether there is anything."""
    done = subprocess.run([ensure(tool)[tool], *words], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"{tool}: {done.stdout}{done.stderr}")


def in_containerfiles() -> Iterator[Finding]:
    for file in sorted((CHECKOUT / "images").glob("*/Containerfile")):
        with tempfile.TemporaryDirectory() as folder:  # it knows Dockerfiles by their name
            copy = Path(folder) / "Dockerfile"
            shutil.copy(file, copy)
            for failed in _checkov("--framework", "dockerfile", "--file", str(copy)):
                yield "checkov", failed["check_id"], str(file.relative_to(CHECKOUT))


def _checkov(*words: str) -> list[dict[str, Any]]:
    """Its failed checks; its exit code tells only whether there are any."""
    command = [str(cache_dir() / "uv/bin/uv"), "tool", "run", "--quiet", "--from", CHECKOV, "checkov", *words]
    flags = ["--compact", "--quiet", "--skip-download", "--output", "json"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"checkov: {done.stdout}{done.stderr}")
    return answer["results"]["failed_checks"] if "results" in answer else []


if __name__ == "__main__":
    main()
