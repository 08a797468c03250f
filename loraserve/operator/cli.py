"""`loraserve`: what publishers, operators and the pods run."""

import os
from collections.abc import Sequence
from importlib import metadata

import click
from click.shell_completion import get_completion_class

from loraserve import log
from loraserve.errors import LoraserveError
from loraserve.operator.access.terminal import stack_config_setting, tell
from loraserve.operator.adapters import catalog_commands, question_commands, training_commands
from loraserve.operator.beforehand import planning_commands
from loraserve.operator.models import application_commands
from loraserve.operator.releases import evaluation_commands, release_commands
from loraserve.operator.stack import loadtest_commands, stack_commands, usage_commands

PROGRAM = "loraserve"
_COMPLETION_VARIABLE = "_LORASERVE_COMPLETE"
_EXTRAS = {"jsonschema": "evaluate", "plotly": "dashboard"} | dict.fromkeys(
    ("torch", "transformers", "peft", "accelerate", "bitsandbytes"), "train"
)
"""Which extra of the package brings a library; the others come with `server`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 after a clear error on stderr (2 for wrong usage; see also `leftovers`)."""
    try:
        return cli.main(arguments, PROGRAM, _COMPLETION_VARIABLE, standalone_mode=False) or 0
    except click.ClickException as wrong_usage:
        wrong_usage.show()
        return wrong_usage.exit_code
    except click.Abort:
        return 130
    except LoraserveError as error:
        tell(f"loraserve: {error}")
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "", "server")
        tell(f"loraserve: {error.name} is missing here: pip install 'loraserve[{extra}]'")
    return 1


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "of a checkout"


_FOR = {
    "Adapters, for publishers": ("questions", "train", "check", "publish", "list", "show", "verify", "diff"),
    "Releases": ("evaluate", "promote", "rollback", "canary", "export", "import", "release"),
    "Models, for applications": ("ask", "batch", "page"),
    "A stack, before it is there": ("plan", "cost", "base-model", "mirror", "preflight"),
    "A stack, for operators": (
        "status",
        "smoke",
        "dashboard",
        "key",
        "usage",
        "loadtest",
        "gc",
        "doctor",
        "receipt",
        "leftovers",
    ),
    "Your shell": ("completion",),
    "In the pods": ("agent", "gateway", "start-cache-writer"),
}


class _ByUser(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """By who uses them, not by the alphabet."""
        return [name for _, names in self._sections() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence."""
        for title, names in self._sections():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(200)) for name in names])

    def _sections(self) -> list[tuple[str, list[str]]]:
        named = {name for names in _FOR.values() for name in names}
        others = [name for name in self.commands if name not in named]
        return [(title, list(names)) for title, names in _FOR.items()] + ([("Others", others)] if others else [])


@click.group(cls=_ByUser, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name=PROGRAM)
def cli() -> None:
    """Serve many LoRA adapters on one base model."""


for _command in (
    *catalog_commands.COMMANDS,
    *release_commands.COMMANDS,
    *planning_commands.COMMANDS,
    *application_commands.COMMANDS,
    *stack_commands.COMMANDS,
    *loadtest_commands.COMMANDS,
    *evaluation_commands.COMMANDS,
    *training_commands.COMMANDS,
    *question_commands.COMMANDS,
    usage_commands.usage,
):
    cli.add_command(_command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion of these commands.

    In ~/.bashrc or ~/.zshrc: eval "$(loraserve completion bash)"; in fish: loraserve completion fish | source
    """
    script = get_completion_class(shell)
    assert script
    click.echo(script(cli, {}, PROGRAM, _COMPLETION_VARIABLE).source())


@cli.command()
def agent() -> None:
    """Run the sidecar of one vLLM (settings come from the environment)."""
    from loraserve.agent.main import run  # `publish` needs none of the agent's libraries
    from loraserve.contract.agent_settings import AgentSettings

    settings = AgentSettings.from_environment(os.environ)
    log.configure(settings.log_format, "agent")
    run(settings)


@cli.command()
def start_cache_writer() -> None:
    """Publish what one vLLM has compiled, and print the stack-config entry (settings come from the environment)."""
    from loraserve.agent.start_cache_writer import write
    from loraserve.catalog.bucket import Bucket
    from loraserve.contract.start_cache_settings import StartCacheSettings

    settings = StartCacheSettings.from_environment(os.environ)
    log.configure(settings.log_format, "start-cache-writer")
    click.echo(stack_config_setting("startCache", write(settings, Bucket(settings.bucket))))


@cli.command()
def gateway() -> None:
    """Run the door in front of vLLM (settings come from the environment)."""
    from loraserve.contract.gateway_settings import GatewaySettings
    from loraserve.gateway.main import run  # an operator's shell needs none of the gateway's libraries

    settings = GatewaySettings.from_environment(os.environ)
    log.configure(settings.log_format, "gateway")
    run(settings)
