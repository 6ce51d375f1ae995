from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An export, a run folder or a checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: print it.")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="Folders of `loom eval`: results.json is read.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The model's licence, as the Hub names it.")] = None,
    pue: Annotated[float | None, typer.Option(help="The data centre's power usage effectiveness.")] = None,
    carbon: Annotated[
        float | None, typer.Option(help="Carbon intensity of its power, kg CO2eq a kWh.")
    ] = None,
    kwh: Annotated[float | None, typer.Option(help="Measured energy, where the records hold none.")] = None,
) -> dict[str, Any]:
    """Write the model card from the records. What was not measured says so.

    Example: loom card runs/quickstart/export --eval runs/quickstart/eval/dpo --licence apache-2.0
    """
    from loom.release.card import Power, make_card

    power = Power(kwh, pue, carbon) if kwh is not None else None
    results = [json.loads((path / "results.json").read_bytes())["results"] for path in evaluation or []]
    text = make_card(model, results, licence, power)
    if out is None:
        console.say(text)
    else:
        from loom.artifact import atomic_write

        with atomic_write(out) as stream:
            stream.write(text.encode())
        console.say(f"{out}: {len(text.splitlines())} lines")
    return {"path": str(out) if out else None, "card": text}
