"""`loraserve loadtest`: what the deployed stack takes, as applications would see it."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.status import Status

from loraserve.operator.access.gateway import gateway, namespace_option, url_option
from loraserve.operator.access.kubectl import context_option
from loraserve.operator.access.terminal import add_row, json_option, key_option, print_json, print_table, table, tell

if TYPE_CHECKING:
    from loraserve.loadtest.client import Progress
    from loraserve.loadtest.report import Result
    from loraserve.loadtest.scenarios import Load, Seen
    from loraserve.loadtest.schedule import Phase
    from loraserve.planning.objectives import Objective

TOLD_EVERY_SECONDS = 30
"""Where no terminal shows progress."""


@click.group()
def loadtest() -> None:
    """Load the gateway at planned times, whatever comes back, and say what it bore.

    Exit code 1: an objective was missed, or this client could not keep up. For figures that count, run it inside the
    cluster (docs/loadtest.md): a port-forward is one connection through the API server.
    """


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every scenario takes."""
    for option in reversed(
        (
            click.option(
                "--adapter", "adapters", multiple=True, help="To load; repeat it (default: all of the key's)."
            ),
            click.option(
                "--seed", type=int, default=1, show_default=True, help="Another one, other times and prompts."
            ),
            click.option(
                "--stack-file", type=click.Path(path_type=Path), help="Whose objectives hold (default: the defaults)."
            ),
            click.option(
                "--objectives",
                "objectives_file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="JSON, as loraserve:objectives has it, where no stack file is at hand.",
            ),
            click.option(
                "--retrieved-words",
                type=click.IntRange(1, 100_000),
                default=300,
                show_default=True,
                help="In front of a question with retrieved text; fewer for a model with a short context.",
            ),
            click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page with plots here."),
            key_option,
            url_option,
            context_option,
            namespace_option,
            json_option,
        )
    ):
        command = option(command)
    return command


_duration_factor = click.option(
    "--duration-factor", type=float, default=1.0, show_default=True, help="Shorter or longer phases, at the same rates."
)


@loadtest.command()
@_duration_factor
@_options
def phases(duration_factor: float, **common: Any) -> int:
    """Fourteen minutes in five phases: warm-up, normal, spike, recovery, cool-down.

    2, 5, 12, 5 and 2 requests a second; 30% to the base model, 70% over the adapters; short, medium and retrieved prompts.
    """
    from loraserve.loadtest.schedule import FIVE_PHASES, shortened

    return _run(common, _phases("five phases", shortened(FIVE_PHASES, duration_factor)))


@loadtest.command()
@_duration_factor
@_options
def overload(duration_factor: float, **common: Any) -> int:
    """400 requests a second for a minute: it may refuse, it must not break, and must answer as before afterwards."""
    from loraserve.loadtest.schedule import OVERLOAD, shortened

    return _run(common, _phases("overload", shortened(OVERLOAD, duration_factor)))


@loadtest.command()
@click.option("--rate", type=float, default=5.0, show_default=True, help="Requests a second, of all tenants together.")
@click.option("--seconds", type=float, default=300.0, show_default=True)
@click.option("--exponent", type=float, default=1.0, show_default=True, help="Of Zipf's law; 0 for even traffic.")
@_options
def tenants(rate: float, seconds: float, exponent: float, **common: Any) -> int:
    """Many adapters, asked as tenants do: the k-th 1 / k^EXPONENT as often as the first."""
    from loraserve.loadtest.schedule import tenants as phases_of
    from loraserve.loadtest.schedule import zipf

    def shares(_: str, adapters: Sequence[str]) -> Mapping[str, float]:
        return zipf(adapters, exponent)

    return _run(common, _phases(f"tenants, Zipf {exponent:g}", phases_of(rate, seconds)), shares)


@loadtest.command()
@click.option("--first-rate", type=float, default=1.0, show_default=True, help="Requests a second.")
@click.option("--factor", type=click.FloatRange(min=1.05), default=1.25, show_default=True, help="From step to step.")
@click.option("--step-seconds", type=click.FloatRange(min=1), default=60.0, show_default=True)
@click.option("--most-rate", type=float, default=400.0, show_default=True, help="Ends there in any case.")
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Of vLLM; hold them at so many."
)
@click.option("--prometheus", metavar="URL", help="Of the stack's Prometheus, for GPU use.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="STACK_FILE",
    help="Set requestsPerReplica there to what was found.",
)
@_options
def sweep(
    first_rate: float,
    factor: float,
    step_seconds: float,
    most_rate: float,
    replicas: int,
    prometheus: str | None,
    write: Path | None,
    **common: Any,
) -> int:
    """Raise the rate until it is too much: knee, 70% operating point, and the requestsPerReplica that follows.

    A rate is too much where calls pile up or an objective is missed.
    """
    from loraserve.loadtest.scenarios import Sweep, run_sweep

    wanted = Sweep(first_rate, factor, step_seconds, most_rate, replicas, prometheus)
    return _run(common, lambda load, seen: run_sweep(load, wanted, seen), write=write)


@loadtest.command()
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("page", type=click.Path(dir_okay=False, path_type=Path))
def render(result: Path, page: Path) -> None:
    """Write the HTML PAGE of a RESULT that --json has printed, or of the whole log of such a pod."""
    from loraserve.loadtest import report

    text = result.read_bytes()
    try:
        found = report.Result.parse(text[text.find(b"\n{") + 1 :])  # progress stands before it
    except ValueError as error:
        raise click.BadParameter(f"{result} is not what `loraserve loadtest --json` prints: {error}") from None
    page.write_text(report.page(found), encoding="utf-8")


COMMANDS = (loadtest,)
Scenario = Callable[["Load", "Seen"], Coroutine[Any, Any, "Result"]]


def _phases(name: str, planned: "Sequence[Phase]") -> Scenario:
    from loraserve.loadtest.scenarios import run_phases

    return lambda load, seen: run_phases(name, load, planned, seen)


def _run(
    common: dict[str, Any],
    scenario: Scenario,
    shares: Callable[[str, Sequence[str]], Mapping[str, float]] | None = None,
    write: Path | None = None,
) -> int:
    import uvloop

    from loraserve.loadtest.client import Target
    from loraserve.loadtest.report import page

    with gateway(common["url"], common["context"], common["namespace"]) as url:
        target = Target(f"{url}/v1", common["key"])
        result = uvloop.run(_loaded(target, common, scenario, shares))
    if common["report"]:
        common["report"].write_text(page(result), encoding="utf-8")
    if common["as_json"]:
        print_json(result.plain())
    else:
        _show(result)
    if write and result.saturation and not result.problems:
        _set_requests_per_replica(write, result.saturation.requests_per_replica)
    return int(bool(result.problems))


def _set_requests_per_replica(stack_file: Path, value: int) -> None:
    from loraserve.planning.stack_file_edit import with_setting

    edit = with_setting(stack_file, "requestsPerReplica", value)
    edit.write()
    tell(edit.diff or f"{stack_file} says so already")


async def _loaded(target: Any, common: dict[str, Any], scenario: Scenario, shares: Any) -> "Result":
    from loraserve.loadtest.client import CannotTest, served
    from loraserve.loadtest.scenarios import Load
    from loraserve.loadtest.schedule import base_and_adapters

    found = await served(target)
    adapters = common["adapters"] or found.adapters
    if strangers := set(adapters) - set(found.adapters):
        raise CannotTest(
            f"the key may not call {', '.join(sorted(strangers))}: choose from {', '.join(found.adapters)}"
        )
    if shares is None and found.base is None:
        raise CannotTest("the key may not call the base model, which gets 30% of the calls: use a key for everything")
    if shares is not None and not adapters:
        raise CannotTest("there is no adapter that the key may call")
    models = (shares or base_and_adapters)(found.base or "", adapters)
    objectives = _objectives(common["stack_file"], common["objectives_file"])
    load = Load(target, models, objectives, common["seed"], common["retrieved_words"])
    with Console(stderr=True).status("waking the model") as status:
        return await scenario(load, _Teller(status))


def _objectives(stack_file: Path | None, objectives_file: Path | None) -> Mapping[str, "Objective"]:
    from loraserve.planning import objectives
    from loraserve.planning import stack_file as stack_files

    if stack_file:
        return stack_files.read(stack_file).objectives
    try:
        return objectives.parse(objectives_file.read_bytes()) if objectives_file else {}
    except ValueError as error:
        raise click.BadParameter(f"{objectives_file} is not what loraserve:objectives has, as JSON: {error}") from None


class _Teller:
    """Where the run is: on one line of a terminal, else a line now and then."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._told = 0.0

    def __call__(self, at: "Progress") -> None:
        open_ = at.sent - at.answered
        text = (
            f"{at.phase}: {at.seconds:.0f} s, sent {at.sent}, answered {at.answered}, failed {at.failed}, open {open_}"
        )
        if self._status.console.is_terminal:
            self._status.update(text)
        elif at.seconds < self._told or at.seconds - self._told >= TOLD_EVERY_SECONDS:
            self._told = at.seconds
            tell(text)


def _show(result: "Result") -> None:
    shown = table(
        "", "calls", "ok", "goodput", "late", "TTFT p50/95/99 ms", "between tokens ms", "end to end ms", "errors"
    )
    for row in result.summaries:
        name = ", ".join(part for part in (row.phase, row.model, row.version) if part) or "all"
        errors = ", ".join(f"{count} {error}" for error, count in row.errors.items())
        latencies = (row.first_token, row.between_tokens, row.end_to_end)
        numbers = (str(row.calls), str(row.succeeded), f"{row.goodput:.1%}", str(row.late))
        add_row(
            shown,
            name,
            *numbers,
            *("/".join(f"{one.value * 1000:.0f}" for one in found) for found in latencies),
            errors,
        )
    print_table(shown)
    if found := result.saturation:
        click.echo(
            f"\nknee {found.knee:g} requests/s{'' if found.reached else ' or more: no step failed, go on with --most-rate'}\n"
            f"operating point {found.operating_rate:.2f} requests/s (70%). For the stack file:\n"
            f"loraserve:requestsPerReplica: {found.requests_per_replica}"
        )
    for problem in result.problems:
        tell(f"problem: {problem}")
