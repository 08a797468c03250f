"""`loraserve plan | cost | base-model | preflight`: what is worth knowing before a deployment."""

import json
from pathlib import Path

import click

from loraserve.contract.addresses import SERVING_NAMESPACE, cluster_name
from loraserve.operator.access.terminal import add_row, json_option, print_checks, print_json, print_table, table, tell


@click.command()
@click.argument("stack_file", type=click.Path(path_type=Path), default=Path("Pulumi.dev.yaml"))
@click.option("--region", help="For prices (default: the stack file's).")
@click.option(
    "--from-prometheus",
    "url",
    metavar="URL",
    help="Slots for the adapters that were in use at once, instead of adapterSlots.",
)
@click.option(
    "--namespace", default=SERVING_NAMESPACE, show_default=True, help="Of the gateway, for --from-prometheus."
)
@click.option("--window", default="7d", show_default=True, help="How far back, for --from-prometheus.")
@json_option
def plan(stack_file: Path, region: str | None, url: str | None, namespace: str, window: str, as_json: bool) -> None:
    """Show what a stack's settings give: where the GPU's memory goes, slots, requests at once, disk, price.

    And what the next smaller and larger instance would. Needs the stack's file only, no Pulumi and no cluster.
    """
    from loraserve.operator.beforehand import plan as planning
    from loraserve.planning import stack_file as stack_files

    at_once = planning.adapters_at_once(url, namespace, window) if url else None
    found = planning.plan(stack_files.read(stack_file), region or stack_files.region_of(stack_file), at_once)
    if as_json:
        print_json(found.plain())
        return
    offers = [offer for offer in (found.smaller, found.offer, found.larger) if offer]
    asked = f" ({found.on_demand} of them loaded on demand)" if found.on_demand else ""
    click.echo(f"{found.model}, {found.adapters} adapters{asked}, {found.max_model_len:,} tokens at most\n")
    shown = table("", *(f"{offer.instance}{' (chosen)' if offer is found.offer else ''}" for offer in offers))
    for label, cell in _ROWS.items():
        add_row(shown, label, *(cell(offer) for offer in offers))
    print_table(shown)
    click.echo(
        f"\nrank {found.rank}, LoRA on {', '.join(found.target_modules) or 'nothing'}\n"
        f"disk: {found.adapter_disk_gib} GiB for adapters, {found.pod_disk_gib} of {found.node_disk_gib} GiB in all\n"
        f"memory: {found.pod_memory_mib:,} MiB at most, with {found.adapters_held or 0} adapters in it; the node has {found.node_memory_mib:,}\n"
        f"flags: {' '.join(found.flags)}\n"
        f"GPU figures follow a model of vLLM {found.measured_with} that was measured on H200 and H100 cards "
        "(docs/capacity.md), not on these."
    )
    if at_once is not None:
        click.echo(
            f"{at_once} adapters were in use within a minute (95th percentile of {window}), so in the stack file:\n"
            f"  loraserve:adapterSlots: {found.offer.slots}"
        )
    for sentence in found.advice:
        click.echo(f"note: {sentence}")


_ROWS = {
    "GPUs": lambda offer: f"{offer.gpus} x {offer.gpu}, {offer.gpu_gib:.1f} GiB",
    "vLLM's share": lambda offer: f"{offer.utilization:.2f}",
    "  weights": lambda offer: f"{offer.weights_gib:.2f} GiB",
    "  adapter slots": lambda offer: f"{offer.adapters_gib:.2f} GiB ({offer.slots} slots)",
    "  peak of a start": lambda offer: f"{offer.peak_gib:.2f} GiB",
    "  CUDA graphs": lambda offer: f"{offer.graphs_gib:.2f} GiB",
    "  overhead": lambda offer: f"{offer.overhead_gib:.2f} GiB",
    "  KV cache": lambda offer: f"{offer.kv_gib:.2f} GiB, {offer.kv_tokens:,} tokens",
    "outside": lambda offer: f"{offer.outside_gib:.2f} GiB",
    "requests of full length": lambda offer: f"{offer.full_requests:,}",
    "requests of 1,000 tokens": lambda offer: f"{offer.usual_requests:,}",
    "fits": lambda offer: ("yes" if offer.fits else "no") + ("" if offer.proven else ", unproven"),
    "list price": lambda offer: f"${offer.hourly:.2f}/h" if offer.hourly else "not known here",
}


@click.command()
@click.argument("stack_file", type=click.Path(path_type=Path), default=Path("Pulumi.dev.yaml"))
@click.option("--region", help="For prices (default: the stack file's).")
@click.option("--hours-per-day", type=click.FloatRange(0, 24), default=4.0, show_default=True, help="With requests.")
@click.option("--starts-per-day", type=click.FloatRange(0), default=3.0, show_default=True, help="From zero.")
@click.option(
    "--tenants", type=click.IntRange(1), default=30, show_default=True, help="For the one-GPU-each comparison."
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Of a busy replica, such as `loadtest` measures.",
)
@json_option
def cost(
    stack_file: Path,
    region: str | None,
    hours_per_day: float,
    starts_per_day: float,
    tenants: int,
    tokens_per_second: float | None,
    as_json: bool,
) -> None:
    """Show what a stack costs at rest, for each hour, start and million tokens, and in a month; list prices.

    Beside it a GPU that never sleeps, and one for each tenant. Needs the stack's file only.
    """
    from loraserve.planning import cost_of_use
    from loraserve.planning import stack_file as stack_files

    use = cost_of_use.Use(hours_per_day, starts_per_day, tenants, tokens_per_second)
    found = cost_of_use.estimate(stack_files.read(stack_file), region or stack_files.region_of(stack_file), use)
    if as_json:
        print_json(found.plain())
        return
    start, shown = found.start, table(f"{found.instance}, {found.region}", "US dollars")
    add_row(shown, "a month at rest, GPU at zero", f"{found.idle_month:.2f}")
    add_row(shown, "an hour of the GPU node", f"{found.gpu_hour:.2f}")
    add_row(shown, "a start from zero and its end (modelled)", f"{start.low:.2f}-{start.high:.2f}")
    add_row(shown, "  until the first token", f"{start.until_first_token_low:.2f}-{start.until_first_token_high:.2f}")
    add_row(shown, "  idle before it ends", f"{start.idle_at_its_end:.2f}")
    add_row(shown, f"  {start.transfer_gb:.0f} GB of image and weights through NAT", f"{start.transfer:.2f}")
    if found.million_tokens is not None:
        add_row(shown, f"a million tokens at {tokens_per_second:g}/s", f"{found.million_tokens:.2f}")
    add_row(
        shown,
        f"a month of {hours_per_day:g} hours and {starts_per_day:g} starts a day",
        f"{found.month_low:.0f}-{found.month_high:.0f}",
    )
    add_row(shown, "  a GPU that never sleeps", f"{found.always_on_month:.0f}")
    add_row(shown, f"  one for each of {tenants} tenants", f"{found.gpu_per_tenant_month:.0f}")
    print_table(shown)


@click.command("base-model")
@click.argument("source")
@click.option("--revision", help="Of a model on the hub; without it, one that is known here is not looked up.")
@json_option
def base_model(source: str, revision: str | None, as_json: bool) -> None:
    """Print the stack's settings for a base model: SOURCE is its id on the hub, or its folder.

    Models that many use are known here (loraserve/planning/known_models.py). Of others it reads config.json and the headers of
    the weights, which are not loaded. A gated model needs HF_TOKEN.
    """
    from loraserve.operator.beforehand import base_model as base_models
    from loraserve.planning.known_models import known_fault

    found = base_models.describe(source, revision)
    if as_json:
        print_json(found.settings())
        return
    tell(f"{found.shape.weights_gib} GiB of weights ({found.shape.quantisation}). Set in the stack config:")
    for key, value in found.settings().items():
        if isinstance(value, dict):
            click.echo(
                f"loraserve:{key}:\n  " + "\n  ".join(f"{name}: {json.dumps(one)}" for name, one in value.items())
            )
        else:
            click.echo(f"loraserve:{key}: {json.dumps(value)}")
    if fault := known_fault(found.shape):
        tell(f"note: {fault}")


@click.command()
@click.option("--stack", required=True, metavar="NAME", help="Such as dev, whose file is Pulumi.dev.yaml here.")
@click.option("--address", metavar="IP", help="This machine's, as the cluster's API sees it (default: asked of AWS).")
@click.option("--policy", is_flag=True, help="Only print what whoever runs `up` must be allowed, as an IAM policy.")
@json_option
def preflight(stack: str, address: str | None, policy: bool, as_json: bool) -> int:
    """Check before `up` that it will work; exit code 1 where it will not.

    This machine, the state, the account and its quotas, every declared version in the bucket, the price. Changes nothing. Needs
    Pulumi, which runs the program's own checks, the same that `up` begins with.
    """
    if policy:
        from loraserve.planning import permissions

        print_json(permissions.policy_document(cluster_name(stack)))
        return 0

    from loraserve.operator.beforehand import preflight as checks

    return print_checks(checks.run(stack, Path(), address), as_json)


COMMANDS = (plan, cost, base_model, preflight)
