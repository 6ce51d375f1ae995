from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console, format_bytes

app = typer.Typer(add_completion=False)
TOKENS, BATCH = 2e12, 4_194_304  # OLMo's, where neither a recipe nor a flag says otherwise


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A recipe to plan for: its model and batches.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value ...")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset instead of a recipe (loom list presets).")
    ] = None,
    node: Annotated[
        str, typer.Option(help="The kind of node; an unknown name lists those known.")
    ] = "lumi-g",
    nodes: Annotated[int, typer.Option(help="How many nodes.", min=1)] = 1,
    tokens: Annotated[float | None, typer.Option(help="Tokens of the whole run.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Instances a rank takes at a time.")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective or full; else what fits.")] = None,
    replicas: Annotated[int, typer.Option(help="Whole copies of the model (HSDP).", min=1)] = 1,
    mfu: Annotated[
        float, typer.Option(help="Model FLOPs utilisation to reckon with.", min=0.01, max=1)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of a device hour, for the cost.")] = None,
    pue: Annotated[float, typer.Option(help="Power of the site over power of the devices.", min=1)] = 1.1,
) -> dict[str, Any]:
    """What a run will need: memory, communication, days, energy, cost. Arithmetic; nothing is run.

    Example: loom plan --preset olmo-65b --nodes 256 --node lumi-g
    Example: loom plan --preset olmo-7b --nodes 27 --node a100-40gb-x8 --mfu 0.35
    """
    from loom.errors import LoomError
    from loom.machine.plan import node as kind
    from loom.machine.plan import plan
    from loom.model.presets import preset as named
    from loom.train.memory import RECOMPUTE, Recompute, fits

    if (recipe is None) == (preset is None):
        raise LoomError("Give a recipe or --preset NAME: one of the two says which model is planned.")
    if recompute not in (None, *RECOMPUTE):
        raise LoomError(f"--recompute {recompute!r} is none of {', '.join(RECOMPUTE)}.")
    mode: Recompute | None = next((m for m in RECOMPUTE if m == recompute), None)
    ranks = nodes * kind(node).ranks
    length: int | None = None
    stages: list[dict[str, Any]] = []
    if recipe is not None:
        planned = _from_recipe(recipe, overrides or [], ranks)
        model, length, stages = planned["model"], planned["length"], planned["stages"]
        tokens = tokens or planned["tokens"]
        batch_tokens = batch_tokens or stages[0]["batch_tokens"]
    else:
        model = named(preset or "")
        # OLMo's batch, or the next that these ranks can share.
        batch_tokens = (
            batch_tokens or -(-BATCH // (ranks * model.context_length)) * ranks * model.context_length
        )
    result = plan(
        model, kind=node, nodes=nodes, tokens=tokens or TOKENS, batch_tokens=batch_tokens,
        sequence_length=length, micro_batch=micro_batch, recompute=mode, replicas=replicas, mfu=mfu,
        price_per_device_hour=price, pue=pue,
    )  # fmt: skip
    title = preset or Path(recipe or "").stem
    console.table(
        f"{title} on {nodes:,} nodes {node}: {result.ranks:,} ranks of {format_bytes(result.capacity)}",
        ["what", "value"],
        [
            ["parameters", result.parameters],
            ["FLOPs a token (6 N + 12 L d T)", f"{result.flops_per_token:.4g}"],
            ["tokens, tokens a step, steps", f"{tokens or TOKENS:.4g}, {result.batch_tokens:,}, {result.steps:,}"],
            ["weights sharded over, whole copies", f"{result.shards:,} ranks, {result.replicas:,}"],
            ["micro-batch, recomputing", f"{result.micro_batch}, {result.recompute}"],
            ["a rank sends each step", format_bytes(result.communication_bytes)],
            ["which takes at the nodes' full rate", f"{result.communication_seconds:.2f} s, none of it hidden"],
            [f"step at {mfu:.0%} of peak", f"{result.step_seconds:.3g} s"],
            ["tokens a second and rank", f"{result.batch_tokens / result.step_seconds / result.ranks:,.0f}"],
            ["days", f"{result.days:,.1f}"],
            ["device hours", f"{result.device_hours:,.0f}"],
            [f"energy (devices x {pue:g})", f"{result.energy_kwh / 1000:,.1f} MWh"],
            ["cost", "n/a (give --price)" if result.cost is None else f"{result.cost:,.0f}"],
        ],
    )  # fmt: skip
    parts = ["weights", "optimizer", "gathered", "gradients", "activations", "loss"]
    rows = [
        [m, *(format_bytes(getattr(used, part)) for part in parts), format_bytes(used.total), used.moment,
         "yes" if fits(used, result.capacity) else "no"]
        for m, used in result.modes.items()
    ]  # fmt: skip
    columns = ["recompute", *parts, "peak", "reached at", "fits"]
    console.table(f"A rank's memory with a micro-batch of {result.micro_batch}", columns, rows)
    if len(stages) > 1:
        console.table(
            "Batches",
            ["from step", "tokens a step", "instances a rank"],
            [[s["step"], s["batch_tokens"], s["instances_a_rank"]] for s in stages],
        )
    if not result.fits:
        console.say(
            "It does not fit: use more nodes, a smaller micro-batch, or nodes with more memory.", style="bold"
        )
    shown = {
        **asdict(result),
        "modes": {m: asdict(used) | {"total": used.total} for m, used in result.modes.items()},
    }
    shown["memory"]["total"] = result.memory.total
    return {**shown, "fits": result.fits, "mfu": mfu, "stages": stages}


def _from_recipe(recipe: str, overrides: list[str], ranks: int) -> dict[str, Any]:
    """Model, length, tokens and batches of a pretraining recipe; refuses a batch the ranks cannot share."""
    from loom.model.presets import resolve
    from loom.recipe import load
    from loom.tokens.order import places_of_step
    from loom.train.config import RunConfig, batch_stages

    config = load(recipe, RunConfig, overrides)
    model = resolve(config.model)
    length = config.data.sequence_length or model.context_length
    stages = batch_stages(config, length, ranks)
    shown = [
        {"step": s.step, "batch_tokens": s.batch * length, "instances_a_rank": s.batch // ranks}
        for s in stages
    ]
    total = places_of_step(stages, config.train.steps)[1] * length
    return {"model": model, "length": length, "stages": shown, "tokens": float(total)}
