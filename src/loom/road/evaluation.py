"""How the road's models are measured: on held-out functions, and on held-out text beside n-gram models."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loom import artifact
from loom.artifact import Artifact, Input, write_json
from loom.console import console
from loom.evals.perplexity import Document
from loom.model.transformer import Transformer
from loom.tasks.item import asked
from loom.tokens.remote import address, exists
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer
from loom.train.callbacks import Evaluate
from loom.train.config import RunConfig
from loom.train.data import sources

if TYPE_CHECKING:
    from loom.evals.contamination import History
    from loom.evals.sources import Sources

# Key in the table, task, metric of its results, whether more is better.
FIGURES = (
    ("rank_accuracy", "docs", "acc", True),
    ("answer_bits_per_byte", "docs_answer", "bits_per_byte", False),
    ("preference_accuracy", "docs_preference", "acc_norm", True),
)
FIGURE_COLUMNS = ["model", "rank accuracy", "answer bits per byte", "preference accuracy", "n"]
IN_LOOP_ITEMS, IN_LOOP_TOKENS = 200, 5_000  # of the rank task; of each source
MODELS = ("base", "sft", "dpo")
TASKS = tuple(task for _, task, *_ in FIGURES)


@dataclass(frozen=True)
class Figures:
    """A row of the before/after table."""

    model: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    n: int

    def plain(self) -> dict[str, Any]:
        row: dict[str, Any] = {"model": self.model}
        for key, *_ in FIGURES:
            row[key], row[f"{key}_stderr"] = self.values[key], self.errors[key]
        return row | {"n": self.n}

    def cells(self) -> list[Any]:
        shown = [f"{self.values[key]:.4f} ± {self.errors[key]:.4f}" for key, *_ in FIGURES]
        return [self.model, *shown, self.n]


def heldout_evaluation(tokens: Sequence[Path], length: int, questions: Path | None = None) -> Evaluate | None:
    """The callback of the training loop: loss on held-out documents of `tokens`, and the rank task.

    None where nothing was held out.
    """
    from loom.evals.inloop import InLoop
    from loom.evals.text import token_documents
    from loom.tasks import data, registry

    if not tokens:
        return None
    tokenizer = Tokenizer.load(tokens[0])
    documents = [
        document
        for folder in tokens
        if (folder / "heldout" / artifact.MANIFEST).exists()
        for document in _some(token_documents(folder / "heldout"), tokenizer)
    ]
    items = {}
    if questions is not None:
        task = registry.tasks(("docs",))[0]
        items = {"docs": data.load(task, questions, limit=IN_LOOP_ITEMS).items}
    if not documents and not items:
        return None
    return InLoop(tokenizer, items, documents, length)


def _some(
    documents: Sequence[Document], tokenizer: Tokenizer, most: int | None = IN_LOOP_TOKENS
) -> list[Document]:
    """The first documents of each source up to the one with which they would be more than `most` tokens: to go on
    with shorter ones would measure short documents only. Of a first that alone is longer, its beginning; its bytes are
    those that its tokens spell."""
    if most is None:
        return list(documents)
    room: dict[str, int] = {}
    kept = []
    for document in documents:
        size = len(document.tokens)
        if document.source not in room and size > most:
            tokens = document.tokens[:most]
            spelled = sum(len(tokenizer.token_bytes(int(token))) for token in tokens)
            document, size = replace(document, tokens=tokens, bytes=spelled), most
            console.warn(
                f"in the loop, {document.source} is measured on the first {most:,} tokens (eval.text_tokens) of its "
                f"first document, which is longer."
            )
        left = room.get(document.source, most)
        if size <= left:
            kept.append(document)
        room[document.source] = left - size if size <= left else -1
    return kept


def recipe_evaluation(config: RunConfig) -> Evaluate | None:
    """What `loom train` watches: the held-out documents of the folders it pretrains on, and what the recipe's
    `eval` names. None where there is nothing to watch.

    Tasks and texts that the run is trained on are left out, with a warning. Raises `LoomError` before the
    first step for rows that are missing or bad.
    """
    from loom.evals.contamination import History
    from loom.evals.encode import encode_items
    from loom.evals.inloop import InLoop
    from loom.evals.sources import find_sources, read_sources
    from loom.evals.text import token_documents
    from loom.tasks import data, registry

    wanted = config.eval
    paths = [Path(item.path) for item in sources(config.data)]
    tuned = config.data.sft if config.train.objective == "sft" else config.data.pairs
    given = paths if config.train.objective == "lm" else [tuned]
    folders = [Path(item) for item in given if item is not None]
    held = [folder / "heldout" for folder in folders if config.train.objective == "lm" and _held_out(folder)]
    if not folders or not (held or wanted.tasks or wanted.text):
        return None
    tokenizer = Tokenizer.load(open_tokens(folders[0]).tokenizer)  # at an address the copy that was fetched
    most = wanted.text_tokens
    documents = [document for folder in held for document in _some(token_documents(folder), tokenizer, most)]
    histories = [History(path) for path in folders]
    if wanted.tasks and (far := [url for folder in folders if (url := address(folder))]):
        console.warn(
            f"what {', '.join(far)} was made from is not looked up: whether rows of eval.tasks are in it is not known."
        )
    if config.train.init is not None:
        histories.append(History(Path(config.train.init)))
    items = {}
    for task in registry.tasks(wanted.tasks):
        loaded = data.load(task, Path(wanted.data or ""), sample=wanted.sample)
        prompts = [asked(item) for item in loaded.items]
        digests = [file.digest for file in loaded.found]
        if any(history.saw(prompts, digests) is not None for history in histories):
            console.warn(f"{task.name} is not measured in the loop: its rows are in what is trained on.")
        else:
            items[task.name] = list(loaded.items)
    # A choice without tokens of its own is said now, not at the first evaluation.
    encode_items([item for group in items.values() for item in group], tokenizer)
    found = _not_trained_on(find_sources([Path(path) for path in wanted.text]), held, histories)
    read = read_sources(found)
    read.check(tokenizer)
    if most is not None:  # no more is encoded than can be kept
        longest = max(len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size))
        read = read.beginning(most * longest)
    texts = _some(read.documents(tokenizer), tokenizer, most)
    if not documents and not items and not texts:
        return None
    made: list[InLoop] = []

    def watch(model: Transformer, step: int) -> Mapping[str, float]:
        # Only the model knows how long its rows are where train.init or train.anneal gives its shape.
        if not made:
            length = config.data.sequence_length or model.config.context_length
            made.append(InLoop(tokenizer, items, documents, length, budget=wanted.budget, texts=texts))
        return made[0](model, step)

    return watch


def _held_out(tokens: Path) -> bool:
    """Whether a token folder, here or at an address, has held-out documents."""
    manifest = tokens / "heldout" / artifact.MANIFEST
    url = address(manifest)
    return manifest.exists() if url is None else exists(url)


def _not_trained_on(found: Sources, held: Sequence[Path], histories: Sequence[History]) -> Sources:
    """The sources of text that are not trained on, nor held out and so measured already; what is left out is said,
    and that nobody took a text out of what is trained on."""
    from loom.evals.sources import trained_on

    seen = trained_on(found, histories)
    for name, where in seen.items():
        files = [str(file.path) for file in found.files if file.source == name]
        console.warn(
            f"{', '.join(files) or name} is not measured in the loop: it is in what is trained on ({where.where})."
        )
    already = [
        folder for folder in found.folders if folder.path.resolve() in [path.resolve() for path in held]
    ]
    for folder in already:
        console.warn(
            f"{folder.path} is held out of what is trained on: it is in eval/validation, and not twice."
        )
    kept = found.without({*seen, *(name for folder in already for name in folder.names.values())})
    for file in kept.files:
        if not any(file.digest in history.against for history in histories):
            console.warn(
                f"what is trained on was not decontaminated against {file.path}, as far as manifests say: pages that "
                f"both hold would flatter its figure (loom decontaminate --against)."
            )
    return kept


def evaluate_model(model: Path, questions: Path, out: Path) -> Artifact:
    """The tasks over held-out functions, once: kind "evaluation"."""
    from loom.evals.evaluate import EvalRecipe, evaluate
    from loom.evals.subject import load_subject

    if (done := _current(out, model)) is not None:
        return done
    return evaluate(load_subject(model), EvalRecipe(tasks=TASKS, data=questions), out)


def measure_text(model: Path, tokens: Path, out: Path) -> Artifact:
    """Held-out documents by source: bits per byte and loss, beside n-gram models of the training tokens.

    results.json has `results` by source (see `loom.evals.perplexity.summary`), `all` pooled, and
    `unigram_entropy` and `bigram_entropy` in nats a token over exactly the tokens of the pooled loss.
    """
    from loom.evals import cache, perplexity
    from loom.evals.ngram import baselines
    from loom.evals.settings import clean
    from loom.evals.subject import load_subject
    from loom.evals.text import token_documents

    if (done := _current(out, model)) is not None:
        return done
    started = time.monotonic()
    subject = load_subject(model)
    documents = token_documents(tokens / "heldout")
    rows = perplexity.document_rows(documents, subject.tokenizer.eos_id, subject.max_length)
    with console.progress("held-out text", total=len(rows)) as progress:
        logp = cache.rows(subject, rows, 2 * len(documents), progress=progress)
    scores = perplexity.document_scores(documents, logp)
    by_source = perplexity.by(scores, "source")
    results = {name: perplexity.summary(group) for name, group in sorted(by_source.items())}
    body = {"results": results | {"all": perplexity.summary(scores)}, "tasks": {}, **baselines(tokens)}
    write_json(out / "results.json", clean(body))  # one document has no bootstrap error
    held = artifact.load(tokens / "heldout", "tokens")
    return artifact.commit(
        out,
        "evaluation",
        recipe={"text": "heldout"},
        inputs=[Input(artifact.relative(subject.path, out), subject.digest), artifact.refer(held, out)],
        outputs=artifact.describe(out, ["results.json"]),
        counters={},
        started=started,
    )


def _current(out: Path, model: Path) -> Artifact | None:
    """The evaluation in `out` if it is of `model` as it is now."""
    from loom.evals.subject import digest

    if not (out / artifact.MANIFEST).exists():
        return None
    done = artifact.load(out, "evaluation")
    if digest(model) not in [item.digest for item in done.inputs]:
        return None
    done.verify()
    return done


def read_figures(folder: Path, models: Sequence[str] = MODELS) -> list[Figures]:
    """Rows of the before/after table from `folder`/<model>/results.json."""
    rows = []
    for name in models:
        results = json.loads((folder / name / "results.json").read_bytes())["results"]
        values = {key: results[task][metric] for key, task, metric, _ in FIGURES}
        errors = {key: results[task][f"{metric}_stderr"] for key, task, metric, _ in FIGURES}
        rows.append(Figures(name, values, errors, results["docs"]["n"]))
    return rows


def paired_change(folder: Path, key: str, model: str, against: str) -> tuple[float, float]:
    """(`model` minus `against`, its standard error) of a figure, over the same items.

    Bits per byte are a ratio of sums over the same bytes, so their difference is the mean of the items'
    differences in bits over the mean bytes of an answer (delta method with fixed denominators).
    """
    _, task, metric, _ = next(figure for figure in FIGURES if figure[0] == key)
    mine, theirs = _lines(folder / model / f"{task}.jsonl"), _lines(folder / against / f"{task}.jsonl")
    if metric == "bits_per_byte":
        bits = [
            (theirs[i]["loglikelihoods"][0] - mine[i]["loglikelihoods"][0]) / math.log(2)
            for i in sorted(mine)
        ]
        # An item's bits over its bits per byte are its bytes.
        sizes = [-mine[i]["loglikelihoods"][0] / math.log(2) / mine[i]["values"]["bpb"] for i in sorted(mine)]
        differences = np.array(bits) / np.mean(sizes)
    else:
        differences = np.array(
            [mine[i]["values"][metric] - theirs[i]["values"][metric] for i in sorted(mine)]
        )
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return {row["doc_id"]: row for row in rows if row["values"]}
