"""What the OLMo paper printed, for a table with yours beside it.

Zero-shot accuracy in percent, Groeneveld et al. 2024, table 3 (the OLMo-7B is the 2.46T-token
checkpoint after its learning rate went to 0). Catwalk's protocol: PMI for ARC and OpenBookQA, per token
for HellaSwag, PIQA and WinoGrande, summed for BoolQ and SciQ; validation rows, at most 1,000. Only
`:olmo-paper` tasks may stand beside these; under another protocol the same model scores up to ten points
differently.
"""

from __future__ import annotations

from typing import Any

TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "sciq", "winogrande")

TABLE_3: dict[str, tuple[float, ...]] = {
    "StableLM 1.6B": (43.8, 63.7, 76.6, 68.2, 45.8, 74.0, 94.7, 64.9),
    "Pythia 1B": (33.1, 50.2, 61.8, 44.7, 37.8, 69.1, 86.0, 53.3),
    "TinyLlama 1.1B": (34.8, 53.2, 64.6, 58.7, 43.6, 71.1, 90.5, 58.9),
    "OLMo-1B": (34.5, 58.1, 60.7, 62.5, 46.4, 73.7, 88.1, 58.9),
    "Falcon-7B": (47.5, 70.4, 74.6, 75.9, 53.0, 78.5, 93.9, 68.9),
    "LLaMA-7B": (44.5, 67.9, 75.4, 76.2, 51.2, 77.2, 93.9, 70.5),
    "Llama-2-7B": (48.5, 69.5, 80.2, 76.8, 48.4, 76.7, 94.5, 69.4),
    "MPT-7B": (46.5, 70.5, 74.2, 77.6, 48.6, 77.3, 93.7, 69.9),
    "Pythia 6.9B": (44.1, 61.9, 61.1, 63.8, 45.0, 75.1, 91.1, 62.0),
    "RPJ-INCITE-7B": (42.8, 68.4, 68.6, 70.3, 49.4, 76.0, 92.9, 64.7),
    "OLMo-7B": (48.5, 65.4, 73.4, 76.4, 50.4, 78.4, 93.8, 67.9),
}


def table(body: dict[str, Any], name: str = "this model") -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the paper's figures, and those `:olmo-paper` tasks of a `results.json` that were
    scored, with n; a dash where nothing was scored under that protocol."""
    mine: list[Any] = []
    for task in TASKS:
        full = f"{task}:olmo-paper"
        result = body["results"].get(full)
        if result is None or not result.get("n"):
            mine.append(None)
            continue
        metric = body["tasks"][full]["headline"]
        value, error = 100 * result[metric], result.get(f"{metric}_stderr")
        spread = "" if error is None else f" ± {100 * error:.1f}"
        mine.append(f"{value:.1f}{spread} (n {result['n']:,})")
    columns = ["model", *TASKS]
    theirs = [[model, *(f"{value:.1f}" for value in values)] for model, values in TABLE_3.items()]
    return columns, [*theirs, [name, *mine]]
