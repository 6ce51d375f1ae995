"""The verbs there are: where each one lives and what it does, in a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    module: str
    summary: str
    group: str


def _verbs(group: str, **summaries: str) -> dict[str, Verb]:
    return {name: Verb(f"loom.cli.{name}", summary, group) for name, summary in summaries.items()}


VERBS: dict[str, Verb] = {
    **_verbs(
        "The whole road",
        quickstart="from this machine's documents to a tuned model, without GPU or network",
    ),
    **_verbs(
        "Corpus",
        collect="raw text on this machine -> documents",
        warc="WARC files, as crawlers write them -> documents",
        curate="the six curation steps as one resumable run",
        tag="run taggers over documents: attributes beside them",
        dedupe="mark duplicate documents and paragraphs",
        decontaminate="mark what evaluation sets share with the corpus",
        mix="filter, replace spans, sample: attributes -> mixed documents",
        classifier="train a fastText classifier for the taggers",
        stat="histograms of attributes",
        why="what happened to one document, and by which rule",
    ),
    **_verbs(
        "Tokens",
        tokenizer="train a byte-level BPE tokenizer",
        tokenize="documents -> token shards",
        prepare="conversations or preference pairs -> token shards with masks",
    ),
    **_verbs(
        "Model",
        plan="what a run will need: memory, time, energy, cost",
        doctor="try this machine before hours are spent on it",
        train="pretrain, SFT or DPO from a recipe; goes on where it stopped",
        sweep="a recipe at several values of its keys",
        average="the mean of several checkpoints' weights",
        eval="evaluate a model: tasks, bits per byte of text",
        compare="two evaluations, paired by document",
        table="evaluations side by side, with errors: before and after tuning",
        export="a checkpoint -> a Hugging Face folder",
        generate="continue a text",
        chat="talk to a model in the terminal",
        serve="an OpenAI-compatible server and a chat page",
        card="the model card, from the records",
        push="publish a model folder on the Hugging Face Hub, when asked to",
        report="the page of a run",
    ),
    "import": Verb("loom.cli.import_model", "a Hugging Face folder -> a checkpoint", "Model"),
    **_verbs(
        "The thread",
        survey="what is in a corpus: counts, n-grams, duplicates, domains, overlap and more",
        index="token shards -> an index to look up any phrase in",
        trace="the documents an answer echoes, and the steps that read them",
        lineage="what an artifact was made from, back to the raw files",
        inspect="the documents in one training step",
        explore="browse a run: steps, phrases, documents, traces, on a local page",
        list="taggers, tasks, presets, recipes there are",
    ),
}
