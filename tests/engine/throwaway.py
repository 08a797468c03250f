"""Small Pulumi projects for the tests of single plugins, run by the real CLI."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from local.engine.plugins import install
from local.tools.toolchain import Tool, ensure
from tests.engine.cli import PulumiStack
from tests.engine.warm import warm_python


class Throwaway(PulumiStack):
    """One project with the stack `dev`, whose state, plugins and home lie in its folder."""

    def __init__(self, folder: Path, program: str, config: Mapping[str, Any] | None = None) -> None:
        """`config` is the `config` section of Pulumi.yaml."""
        project = {"name": "throwaway", "runtime": {"name": "python", "options": {"virtualenv": str(warm_python())}}}
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"config": dict(config or {})}))
        (folder / "state").mkdir()
        install(folder / "home")
        (folder / "__main__.py").write_text(textwrap.dedent(program))
        environment = {
            "LORASERVE_PYTHON": str(warm_python() / "bin" / "python"),
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "throwaway",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PYTHONDONTWRITEBYTECODE": "",  # compiling the SDKs anew takes longer than the tests
        }
        super().__init__(folder, "dev", ensure(Tool.PULUMI)[Tool.PULUMI], os.environ | environment)

    def configure(self, **values: str) -> None:
        """Sets these keys of the stack file, and takes away all others."""
        path = self.project / "Pulumi.dev.yaml"
        kept = yaml.safe_load(path.read_text())  # the salt of its secrets
        path.write_text(yaml.safe_dump(kept | {"config": {f"throwaway:{key}": value for key, value in values.items()}}))

    def state(self) -> str:
        """The state as the backend stores it."""
        return (self.project / "state/.pulumi/stacks/throwaway/dev.json").read_text()
