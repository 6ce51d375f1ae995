from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loom.console import console

if TYPE_CHECKING:
    from loom.release.card import Power

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An export, a run folder or a checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: print it.")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="Folders of `loom eval`: results.json is read.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The model's licence, as the Hub names it.")] = None,
    base_model: Annotated[
        list[str] | None, typer.Option(help="The Hub's name of the model this one began from: owner/name.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="The Hub's name of a data set it read: owner/name.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="ISO 639 code of a language, such as en.")
    ] = None,
    pue: Annotated[float | None, typer.Option(help="The data centre's power usage effectiveness.")] = None,
    carbon: Annotated[
        float | None, typer.Option(help="Carbon intensity of its power, kg CO2eq a kWh.")
    ] = None,
    kwh: Annotated[float | None, typer.Option(help="Measured energy, where the records hold none.")] = None,
) -> dict[str, Any]:
    """Write the model card from the records. What was not measured says so.

    As README.md of an export it becomes the export's own card, which `loom push` then sends.

    Example: loom card runs/quickstart/export --eval runs/quickstart/eval/dpo --licence apache-2.0
    """
    from loom.artifact import MANIFEST
    from loom.evals.beside import table as beside
    from loom.release.card import CARD, Links, make_card, replace_card

    results = [beside.read(path)["results"] for path in evaluation or []]
    links = Links(tuple(base_model or ()), tuple(dataset or ()), tuple(language or ()))
    text = make_card(model, results, licence, _power(model, kwh, pue, carbon), links)
    if out is None:
        console.say(text)
    elif out.name == CARD and (out.parent / "config.json").is_file() and (out.parent / MANIFEST).is_file():
        replace_card(out.parent, text)
        console.say(f"{out}: {len(text.splitlines())} lines, now the card of this export")
    else:
        from loom.artifact import atomic_write

        with atomic_write(out) as stream:
            stream.write(text.encode())
        console.say(f"{out}: {len(text.splitlines())} lines")
    return {"path": str(out) if out else None, "card": text}


def _power(model: Path, kwh: float | None, pue: float | None, carbon: float | None) -> list[Power]:
    """What was given, else each run's behind the model: sampled, or an estimate that says so."""
    from loom.release.card import Power, ancestors
    from loom.report.energy import Given
    from loom.report.records import run_energy

    given = Given(pue, carbon, by="loom card")
    if kwh is not None:
        return [Power(kwh, pue, carbon)]
    folders = [item.path.resolve() for item in ancestors(model) if item.kind in ("run", "checkpoint")]
    runs = dict.fromkeys(p.parent.parent if p.parent.name == "checkpoints" else p for p in folders)
    found = []
    for folder in reversed(runs):
        if (energy := run_energy(folder, given)) is not None:
            values = (energy.kwh, energy.pue, energy.carbon_intensity, folder.name)
            found.append(Power(*values, energy.measured, energy.how, energy.source))
    return found
