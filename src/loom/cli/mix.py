from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A mixture: recipes/olmo-7b-sample.yaml.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, on top of the recipe.")] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Dolma's mixer configuration, YAML or JSON.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the mixture; under -c the file says.")] = None,
    compat: Annotated[str, typer.Option(help="dolma-1.2: its output byte for byte, defects and all.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Draw a mixture of so many tokens and shuffle it; or filter and replace spans as `dolma mix -c` does.

    Example: loom mix recipes/olmo-7b-sample.yaml documents=corpus tokens=2000000 --out mixture
    """
    from loom.corpus import remote

    remote.use_endpoint(endpoint)
    if (config is None) == (recipe is None):
        raise LoomError(
            "Give either a recipe (loom mix RECIPE --out DIR) or Dolma's file (loom mix -c FILE)."
        )
    if config is not None:
        if out is not None or overrides:
            raise LoomError(
                "Under -c the file says where the output goes and all else: leave --out and key=value out."
            )
        return _dolma(config, compat, engine, workers, address)
    if out is None or recipe is None:
        raise LoomError("Name the folder of the mixture: --out DIR.")
    if compat:
        raise LoomError("--compat is for Dolma's own files (-c FILE).")
    from loom.corpus.sample import Sample, sample
    from loom.recipe import load

    made = sample(load(recipe, Sample, overrides or ()), out, choose(engine, workers, address))
    rows = [
        (
            name,
            part["available_tokens"],
            part["wanted_tokens"],
            part["tokens"],
            part["taken"],
            part["copies"],
            f"{part['tokens'] / part['available_tokens']:.1%}",
        )
        for name, part in made.counters["sources"].items()
    ]
    columns = ["source", "tokens there", "wanted", "taken", "documents", "copies", "of the source"]
    console.table(f"Mixture {out}", columns, rows)
    aside = made.counters["rejected"]
    said = f"; {aside:,} rows are no documents (see {out / 'rejected'})" if aside else ""
    console.say(f"{made.counters['documents']:,} documents, {made.counters['tokens']:,} tokens{said}")
    return {"out": str(out), **made.counters}


def _dolma(config: Path, compat: str, engine: str, workers: int | None, address: str) -> dict[str, Any]:
    from loom.corpus.dolma import places
    from loom.corpus.dolma.config import Mixer, load
    from loom.corpus.dolma.mixing import mix, plan

    if compat not in ("", "dolma-1.2"):
        raise LoomError(f"--compat knows dolma-1.2 only, not {compat!r}.")
    mixer = load(config, Mixer)
    if mixer.dryrun:
        planned = plan(mixer, compat)
        shown = [(p.stream.name, len(p.files), len(p.shards), p.stream.output.path) for p in planned]
        console.table(
            "Dry run: nothing was done", ["stream", "files", "shards", "would be written to"], shown
        )
        return {"dryrun": True, "streams": {name: {"files": f, "shards": s} for name, f, s, _ in shown}}
    artifacts = mix(mixer, compat, choose(engine, workers or places.workers(mixer.processes), address))
    keys = ["documents_in", "rejected", "filtered", "too_short", "documents_out", "unlike_dolma"]
    counters = {
        stream.name: dict(item.counters["streams"][stream.name])
        for stream, item in zip(mixer.streams, artifacts, strict=True)
    }
    rows = [
        (stream.name, *(counters[stream.name][key] for key in keys), stream.output.path)
        for stream in mixer.streams
    ]
    columns = ["stream", "in", "rejected", "filtered", "too short", "out", "unlike Dolma", "written to"]
    console.table("Mixed", columns, rows)
    if by_rule := [(name, *item) for name, each in counters.items() for item in each["filtered_by"].items()]:
        console.table(
            "Filtered by the first rule that speaks", ["stream", "rule", "documents"], by_rule, left=2
        )
    return {"streams": counters}
