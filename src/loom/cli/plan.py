from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loom.console import console, format_bytes

if TYPE_CHECKING:
    from loom.model.config import ModelConfig
    from loom.train.config import RunConfig

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
    micro_batch: Annotated[
        int | None, typer.Option(help="Instances a rank takes at a time; else the recipe's.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help="none, selective or full; else what the recipe says, or what fits.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Whole copies of the model (HSDP).", min=1)] = None,
    from_step: Annotated[int, typer.Option(help="A recipe's batches from this step on only.", min=1)] = 1,
    mfu: Annotated[
        float, typer.Option(help="Model FLOPs utilisation to reckon with.", min=0.01, max=1)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of a device hour, for the cost.")] = None,
    pue: Annotated[float, typer.Option(help="Power of the site over power of the devices.", min=1)] = 1.1,
) -> dict[str, Any]:
    """What a run will need: memory, communication, days, energy, cost. Arithmetic; nothing is run.

    Of a recipe everything is taken that matters: batches and when they change, micro-batch, recomputing,
    precision and how weights are shared; a flag says otherwise.

    Example: loom plan --preset olmo-65b --nodes 256 --node lumi-g
    Example: loom plan --preset olmo-7b --nodes 27 --node a100-40gb-x8 --mfu 0.35
    """
    from loom.errors import LoomError
    from loom.machine.plan import node as kind
    from loom.machine.plan import plan
    from loom.model.presets import preset as named
    from loom.train.memory import RECOMPUTE, fits

    if (recipe is None) == (preset is None):
        raise LoomError("Give a recipe or --preset NAME: one of the two says which model is planned.")
    mode = next((m for m in RECOMPUTE if m == recompute), None)
    if recompute is not None and mode is None:
        raise LoomError(f"--recompute {recompute!r} is none of {', '.join(RECOMPUTE)}.")
    ranks = nodes * kind(node).ranks
    stages: list[dict[str, Any]] = []
    given: dict[str, Any] = {}
    if recipe is not None:
        model, stages, given = _from_recipe(recipe, overrides or [], ranks, from_step)
        if batch_tokens is not None:
            given["ramp"], stages = [], []
    else:
        model = named(preset or "")
        # OLMo's batch, or the next that these ranks can share.
        given["batch_tokens"] = -(-BATCH // (ranks * model.context_length)) * ranks * model.context_length
    flags = {
        "tokens": tokens, "batch_tokens": batch_tokens, "micro_batch": micro_batch, "recompute": mode,
        "replicas": replicas, "strategy": None if replicas is None else "hsdp",
    }  # fmt: skip
    given = {"tokens": TOKENS} | given | {name: value for name, value in flags.items() if value is not None}
    result = plan(
        model, kind=node, nodes=nodes, mfu=mfu, price_per_device_hour=price, pue=pue, **given
    )  # fmt: skip
    shared = "" if result.ranks == 1 else f"{result.strategy}: "
    title = preset or Path(recipe or "").stem
    console.table(
        f"{title} on {nodes:,} nodes {node}: {result.ranks:,} ranks of {format_bytes(result.capacity)}",
        ["what", "value"],
        [
            ["parameters", result.parameters],
            ["FLOPs a token (6 N + 12 L d T)", f"{result.flops_per_token:.4g}"],
            ["tokens, tokens a step, steps", f"{given['tokens']:.4g}, {result.batch_tokens:,}, {result.steps:,}"],
            [f"{shared}weights sharded over, whole copies", f"{result.shards:,} ranks, {result.replicas:,}"],
            *([["ranks that share a row", result.context]] if result.context > 1 else []),
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


def _from_recipe(
    recipe: str, overrides: list[str], ranks: int, first: int
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """(model, batches, what `plan` is given) of a pretraining recipe from a step on.

    Refuses a batch that the ranks cannot share.
    """
    from loom.errors import LoomError
    from loom.recipe import load
    from loom.tokens.order import places_of_step
    from loom.train.config import RunConfig, batch_stages

    config = load(recipe, RunConfig, overrides)
    train, parallel = config.train, config.parallel
    if first > train.steps:
        raise LoomError(f"--from-step {first:,} is past train.steps {train.steps:,}.")
    model = _shape(config)
    length = config.data.sequence_length or model.context_length
    readers = max(1, ranks // parallel.context)
    stages = batch_stages(config, length, readers, first - 1)
    stages = [
        s for number, s in enumerate(stages) if number + 1 == len(stages) or stages[number + 1].step > first
    ]
    batches = [(max(1, s.step - first + 1), s.batch * length) for s in stages if s.step <= train.steps]
    shown = [
        {"step": max(s.step, first), "batch_tokens": s.batch * length, "instances_a_rank": s.batch // readers}
        for s in stages
    ]
    places = places_of_step(stages, train.steps)[1] - places_of_step(stages, first)[0]
    return model, shown, {
        "tokens": float(places * length), "batch_tokens": batches[0][1], "ramp": batches[1:],
        "sequence_length": length, "micro_batch": train.micro_batch, "recompute": train.recompute,
        "activation_budget": train.activation_budget, "bf16": train.precision == "bf16",
        "strategy": parallel.strategy, "replicas": parallel.replicas, "context": parallel.context,
    }  # fmt: skip


def _shape(config: RunConfig) -> ModelConfig:
    """Of the recipe's model; where it leaves that out, of what it starts from."""
    from loom.model.presets import ModelRecipe, resolve

    origin = config.train.init or config.train.anneal
    if origin is None or config.model != ModelRecipe():
        return resolve(config.model)
    from loom.train.initial import read_shape

    return read_shape(Path(origin))
