"""Small Pulumi projects for the tests of single plugins, run by the real CLI."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pulumi import automation

from local.engine.plugins import install
from local.tools.toolchain import Tool, ensure


@dataclass(frozen=True)
class Throwaway:
    """One project with the stack `dev`, whose state, plugins and home lie in `folder`."""

    folder: Path
    stack: automation.Stack

    @classmethod
    def create(cls, folder: Path, program: str, config: Mapping[str, Any] | None = None) -> Throwaway:
        """`config` is the `config` section of Pulumi.yaml."""
        project = {"name": "throwaway", "runtime": {"name": "python", "options": {"virtualenv": sys.prefix}}}
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"config": dict(config or {})}))
        (folder / "__main__.py").write_text(textwrap.dedent(program))
        (folder / "state").mkdir()
        install(folder / "home")
        pulumi_command(folder).parent.mkdir(parents=True)
        pulumi_command(folder).symlink_to(ensure(Tool.PULUMI)[Tool.PULUMI])
        options = automation.LocalWorkspaceOptions(
            work_dir=str(folder),
            pulumi_home=str(folder / "home"),
            pulumi_command=automation.PulumiCommand(root=str(folder / "cli")),
            env_vars=environment(folder),
        )
        return cls(folder, automation.create_or_select_stack("dev", work_dir=str(folder), opts=options))

    def rewrite(self, program: str) -> None:
        (self.folder / "__main__.py").write_text(textwrap.dedent(program))

    def configure(self, **values: str) -> None:
        self.stack.set_all_config({key: automation.ConfigValue(value) for key, value in values.items()})

    def up(self) -> dict[str, int]:
        """How many resources were created, updated, replaced, deleted or left the same. Raises CommandError."""
        return _counts(self.stack.up().summary)

    def refresh(self) -> dict[str, int]:
        return _counts(self.stack.refresh().summary)

    def destroy(self) -> dict[str, int]:
        return _counts(self.stack.destroy().summary)

    def outputs(self) -> dict[str, Any]:
        return {key: output.value for key, output in self.stack.outputs().items()}

    def state(self) -> str:
        """The state as the backend stores it."""
        return (self.folder / "state/.pulumi/stacks/throwaway/dev.json").read_text()


def pulumi_command(folder: Path) -> Path:
    """The CLI, where the automation API looks for it."""
    return folder / "cli" / "bin" / "pulumi"


def environment(folder: Path) -> dict[str, str]:
    """What the CLI needs to work in `folder` and nowhere else."""
    return {
        "LORASERVE_PYTHON": sys.executable,
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "throwaway",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PYTHONDONTWRITEBYTECODE": "",  # compiling the SDKs anew takes longer than the tests
    }


def _counts(summary: automation.UpdateSummary) -> dict[str, int]:
    return {str(getattr(change, "value", change)): count for change, count in (summary.resource_changes or {}).items()}
