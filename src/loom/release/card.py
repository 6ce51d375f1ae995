"""The model card: README.md of a release, written from the records and nothing else.

What the records do not hold is said to be unknown or not measured; no figure is typed by hand.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loom.artifact import MANIFEST, Output, atomic_write, commit, describe, load, read_run
from loom.chat.template import chat_template
from loom.errors import LoomError
from loom.model.huggingface import config_to_huggingface
from loom.release.source import open_source, type_name
from loom.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ancestor:
    """A manifest on the way back from the model: `stages` from the nearest to the raw data."""

    path: Path
    body: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.body.get("kind"))


def ancestors(path: Path) -> Iterator[Ancestor]:
    """Manifests behind `path`, itself first, each once, nearest first."""
    seen: set[Path] = set()
    layer = [path]
    while layer:
        following: list[Path] = []
        for folder in layer:
            manifest = folder / MANIFEST
            if folder.resolve() in seen or not manifest.is_file():
                continue
            seen.add(folder.resolve())
            body = json.loads(manifest.read_bytes())
            yield Ancestor(folder, body)
            following += [folder / item["path"] for item in _inputs(folder, body)]
        layer = following


@dataclass(frozen=True)
class Links:
    """What the Hub's pages are joined by: models and data sets by name, languages as ISO 639 codes.

    The records hold folders and not the Hub's names, so a person gives them.
    """

    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `LoomError` for a name that the Hub would refuse."""
        for name in (*self.base_models, *self.datasets):
            if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name):
                raise LoomError(f"{name!r} is no name on the Hub. Write it as its page does, owner/name.")
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
                raise LoomError(f"{code!r} is no language code. Give it as ISO 639 does, en or deu.")


@dataclass(frozen=True)
class Records:
    """What a card is written from."""

    name: str
    config: Mapping[str, Any]
    dtype: str
    template: str | None
    behind: tuple[Ancestor, ...] = ()
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licence: str | None = None
    power: tuple[Power, ...] | None = ()  # None where it was not looked for
    licences: Licences | None = None  # None where it was not counted
    links: Links = Links()


@dataclass(frozen=True)
class Power:
    """A stage's energy, with the site's PUE and carbon intensity (kg CO2eq a kWh), if known.

    `how` says how it was had; `measured` is false for an estimate.
    """

    kwh: float
    pue: float | None = None
    carbon: float | None = None
    stage: str = "all"
    measured: bool = True
    how: str = ""
    source: str = ""


def write_card(folder: Path, source: Path, *, dtype: str, template: str | None) -> None:
    """Write `folder`/README.md for the Hugging Face files there, made from the model at `source`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    records = Records(_name(source), config, dtype, template, tuple(ancestors(source)), power=None)
    with atomic_write(folder / CARD) as stream:
        stream.write(card(records).encode())


def replace_card(folder: Path, text: str) -> None:
    """Make `text` the README.md of an export, and say so in its manifest, so that it can be published.

    Raises `LoomError` for a folder that is no export, or in which anything else was changed.
    """
    made = load(folder, "model")
    others = replace(made, outputs=tuple(item for item in made.outputs if item.path != CARD))
    others.verify(data=True)
    with atomic_write(folder / CARD) as stream:
        stream.write(text.encode())
    outputs: list[Output] = [*others.outputs, *describe(folder, [CARD])]
    spent = read_run(folder).get("seconds")
    commit(
        folder,
        "model",
        recipe=made.recipe,
        inputs=made.inputs,
        outputs=outputs,
        counters=made.counters,
        facts=made.facts,
        started=time.monotonic() - spent if isinstance(spent, int | float) else None,
    )


def make_card(
    model: Path,
    results: Sequence[Mapping[str, Mapping[str, Any]]] = (),
    licence: str | None = None,
    power: Sequence[Power] = (),
    links: Links = Links(),
) -> str:
    """The card of an export, a run or a checkpoint, with evaluations; licences counted in the documents."""
    source = open_source(model)
    tokenizer = Tokenizer.load(source.tokenizer)
    dtype = type_name(source.dtype)
    config = config_to_huggingface(source.config, tokenizer.eos_id, tokenizer.pad_id, dtype)
    behind = tuple(ancestors(source.folder.path))
    merged = {task: metrics for result in results for task, metrics in result.items()}
    name = _name(next((a.path for a in behind if a.kind in ("run", "checkpoint")), source.folder.path))
    found = chat_template(source.folder.path)
    template = found.text if found else None
    counted = count_licences(behind)
    return card(Records(name, config, dtype, template, behind, merged, licence, tuple(power), counted, links))


@dataclass(frozen=True)
class Licences:
    """Documents by licence; `missing` names what else the tokens were made from and could not be counted."""

    documents: Mapping[str, int]
    missing: tuple[str, ...] = ()


def count_licences(behind: Sequence[Ancestor]) -> Licences:
    """Documents by licence in what the tokens were made from: each folder of documents and file of them once.

    A document whose metadata names no licence counts as unknown.
    """
    from loom.corpus.documents import SUFFIXES, find_files, read

    corpora: dict[Path, list[str]] = {}
    missing: list[str] = []
    for item in behind:
        tokens = item.body.get("tokens")
        if item.kind != "tokens" or not isinstance(tokens, Mapping) or not tokens.get("sources"):
            continue
        other = {tokens.get("tokenizer", {}).get("digest"), *item.body.get("against", ())}
        for given in _inputs(item.path, item.body):
            place = item.path / given["path"]
            kind = _kind(place)
            if given["digest"] in other or kind in ("tokenizer", "tokens"):
                continue
            if kind == "documents" and (place / "documents").is_dir():
                corpora[place.resolve()] = [str(place / "documents")]
            elif (
                kind is None and place.name.endswith(SUFFIXES) and place.is_file() and "chat" not in item.body
            ):
                corpora[place.resolve()] = []
            else:
                missing.append(f"{place.name} (of {item.path.resolve().name})")
    found: Counter[str] = Counter()
    for corpus, patterns in corpora.items():
        for file in find_files(patterns) if patterns else [corpus]:
            for batch in read(file):
                for row in batch.table.column("metadata").to_pylist():
                    named = json.loads(row).get("licence") or json.loads(row).get("license") if row else None
                    found[str(named).strip()[:80] if named else "unknown"] += 1
    return Licences(dict(found.most_common()), tuple(dict.fromkeys(missing)))


def _kind(path: Path) -> str | None:
    """What an artifact's folder is; None for what is none, or no longer there."""
    try:
        return str(json.loads((path / MANIFEST).read_bytes()).get("kind"))
    except (OSError, ValueError, AttributeError):
        return None


def _inputs(folder: Path, body: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """A manifest's inputs; many of them lie in a file beside it."""
    listed = body.get("inputs")
    if isinstance(listed, Mapping):
        file = folder / str(listed["file"])
        return [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []
    return listed if isinstance(listed, list) else []


def _name(source: Path) -> str:
    """A run's name: that of its folder, also when a checkpoint inside is meant."""
    path = source.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def card(records: Records) -> str:
    """README.md, front matter included."""
    parts = [
        _front(records),
        f"# {records.name}\n",
        _about(records),
        "## Use\n",
        _use(records),
        "## Training\n",
        _training(records),
        "## Data\n",
        _data(records),
        "### Licences of the data\n",
        _licences(records),
        "## Evaluation\n",
        _evaluation(records),
        "## Energy\n",
        _energy(records),
        "## Limits\n",
        LIMITS,
    ]
    return "\n".join(parts)


CARD = "README.md"
MOST_LICENCES = 20
MOST_MISSING = 8
LIMITS = (
    "The model was not tuned for safety. It repeats what its training text says, right or wrong, and "
    "makes up the rest. What was not measured above is unknown.\n"
)


def _front(records: Records) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [loom]"]
    if records.licence:
        lines.append(f"license: {json.dumps(records.licence)}")
    named = records.links
    for key, values in (
        ("base_model", named.base_models),
        ("datasets", named.datasets),
        ("language", named.languages),
    ):
        if values:
            lines.append(f"{key}: {json.dumps(values)}")
    return "\n".join([*lines, "---", ""])


def _rows(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]) + "\n"


def _about(records: Records) -> str:
    c = records.config
    return _rows(
        [
            ("architecture", c["architectures"][0]),
            ("layers", str(c["num_hidden_layers"])),
            ("width", str(c["hidden_size"])),
            ("heads", f"{c['num_attention_heads']} (keys and values {c['num_key_value_heads']})"),
            ("MLP width", str(c["intermediate_size"])),
            ("context", f"{c['max_position_embeddings']:,} tokens"),
            (
                "embedding rows",
                f"{c['vocab_size']:,}" + (", shared with the output" if c["tie_word_embeddings"] else ""),
            ),
            ("weights", records.dtype),
            ("end of text", f"id {c['eos_token_id']}"),
        ]
    )


def _use(records: Records) -> str:
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    if records.template is not None:
        lines += [
            'messages = [{"role": "user", "content": "What do you know?"}]',
            "ids = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))",
        ]
    else:
        lines += [
            'ids = tokenizer("The library", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))",
        ]
    lines += [
        "```",
        "",
        "With Loom: `loom chat .`, `loom serve .`"
        if records.template
        else "With Loom: `loom generate . --prompt TEXT`",
        "",
    ]
    if records.template is not None:
        lines += ["Chat template:", "", "```", records.template, "```", ""]
    return "\n".join(lines)


def _training(records: Records) -> str:
    runs = [item for item in records.behind if item.kind in ("run", "checkpoint") and item.body.get("recipe")]
    if not runs:
        return "Not in the records.\n"
    parts = []
    for item in runs:
        counters = item.body.get("counters", {})
        where = _name(item.path)
        head = f"**{where}**" + (f" (step {counters['step']:,})" if "step" in counters else "")
        settings = _settings(item.body["recipe"])
        facts = [(key, f"{value:,}") for key, value in counters.items() if isinstance(value, int)]
        parts.append(head + "\n\n" + _rows([*facts, *settings]))
    return "\n".join(parts)


def _settings(recipe: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A recipe's values by dotted key; paths, which are one machine's, and empty values are left out."""
    if isinstance(recipe, Mapping):
        return [row for key, value in recipe.items() for row in _settings(value, f"{prefix}{key}.")]
    if recipe is None or (isinstance(recipe, str) and _is_path(recipe, prefix)):
        return []
    return [(f"`{prefix.rstrip('.')}`", f"`{json.dumps(recipe, ensure_ascii=False)}`")]


def _is_path(value: str, key: str) -> bool:
    """Whether a setting names a place on a machine: by its key, or by how it begins."""
    named = key.startswith("data.") or key.rstrip(".").endswith(("init", "reference", "tokenizer", "mirror"))
    return "/" in value and (named or value.startswith(("/", ".", "~")) or Path(value).exists())


def _data(records: Records) -> str:
    rows = []
    for item in records.behind:
        tokens = item.body.get("tokens")
        if isinstance(tokens, Mapping):
            for source, facts in tokens.get("sources", {}).items():
                rows.append(
                    f"| {item.path.resolve().name} | {source} | {facts.get('documents', 0):,} "
                    f"| {facts.get('tokens', 0):,} | {facts.get('bytes', 0):,} |"
                )
    if not rows:
        return "Not in the records.\n"
    head = ["| folder | source | documents | tokens | bytes |", "| --- | --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *rows]) + "\n"


BESIDE_FIGURES = (
    "n",
    "chance",
    "domains",
    "bytes",
    "tokens",
    "training_share",
    "subjects",
    "judged",
    "not_judged",
)
"""What stands among a task's metrics in results.json and is none."""


def _evaluation(records: Records) -> str:
    rows = []
    for task, metrics in records.results.items():
        if "refused" in metrics:
            rows.append(f"| {task} | no figure: {metrics['refused']} | | |")
            continue
        for name, value in metrics.items():
            if name in BESIDE_FIGURES or "_stderr" in name or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f"{name}_stderr")
            shown = f"{value:.4g}" + (f" ± {error:.2g}" if isinstance(error, (int, float)) else "")
            rows.append(f"| {task} | {name} | {shown} | {metrics.get('n', '')} |")
    if not rows:
        return "Not measured.\n"
    return "\n".join(["| task | metric | value | n |", "| --- | --- | ---: | ---: |", *rows]) + "\n"


def _licences(records: Records) -> str:
    if records.licences is None:
        return "Not counted; `loom card` counts them where the documents are still there.\n"
    counted, missing = records.licences.documents, [_cell(name) for name in records.licences.missing]
    if len(missing) > MOST_MISSING:
        missing[MOST_MISSING:] = [f"{len(missing) - MOST_MISSING} more"]
    told = (
        f"Not counted, because no documents could be read there: {', '.join(missing)}.\n" if missing else ""
    )
    if not counted:
        return told or "Not counted: no documents are in the records.\n"
    rows = [f"| {_cell(name)} | {count:,} |" for name, count in counted.items()]
    shown = rows[:MOST_LICENCES]
    if len(rows) > MOST_LICENCES:
        rest = sum(list(counted.values())[MOST_LICENCES:])
        shown.append(f"| {len(rows) - MOST_LICENCES} others | {rest:,} |")
    return (
        "\n".join(["| licence | documents |", "| --- | ---: |", *shown])
        + (f"\n\n{told}" if told else "\n")
        + "\nThe documents' own licences go on holding for their text. Licences with copyleft or "
        "attribution, and documents whose licence is unknown, need a look before the text is passed on.\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _energy(records: Records) -> str:
    if records.power is None:
        return "Not in this card; `loom card` adds what the runs' records hold.\n"
    if not records.power:
        return "Not measured.\n"
    head = [
        "| stage | energy, kWh | | PUE | kg CO2eq a kWh | kg CO2eq |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    rows, total = [], 0.0
    for item in records.power:
        known = item.pue is not None and item.carbon is not None
        kg = item.kwh * item.pue * item.carbon if item.pue is not None and item.carbon is not None else 0.0
        total += kg
        cells = [_cell(item.stage), f"{item.kwh:.4g}", "measured" if item.measured else "estimated"]
        cells += ["not known" if item.pue is None else f"{item.pue:g}"]
        cells += [
            "not known" if item.carbon is None else f"{item.carbon:g}",
            _kilograms(kg) if known else "not known",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    notes = dict.fromkeys(_cell(text) for item in records.power for text in (item.how, item.source) if text)
    return (
        "\n".join([*head, *rows])
        + f"\n\n{_kilograms(total)} kg CO2eq where all three are known: energy x PUE x carbon intensity, a lower bound "
        "(the hardware's making, trials and idle machines are not in it).\n"
        + "".join(f"\n- {note}." for note in notes)
        + ("\n" if notes else "")
    )


def _kilograms(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.4g}"
