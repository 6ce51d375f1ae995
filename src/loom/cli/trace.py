from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)
SHOWN = 3  # documents of a span listed on the terminal
WIDTH = 72  # code points of a passage shown there


@app.command()
def trace(
    index: Annotated[Path, typer.Option(help="What `loom index` wrote, or infini-gram's own index.")],
    text: Annotated[str | None, typer.Argument(help="The answer to trace.")] = None,
    chat: Annotated[Path | None, typer.Option(help="A saved answer: JSON with messages or text.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run whose steps are named.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    find: Annotated[str | None, typer.Option(help="Documents that hold phrases: 'a OR b AND c'.")] = None,
    takedown: Annotated[Path | None, typer.Option(help="A file of document ids to look for.")] = None,
    documents: Annotated[int, typer.Option(help="Documents shown for a span.")] = 10,
    min_tokens: Annotated[int, typer.Option(help="Shorter spans are left out.")] = 1,
    max_count: Annotated[int | None, typer.Option(help="Commoner spans are left out.")] = None,
    density: Annotated[float, typer.Option(help="Spans kept for each token of the text.")] = 0.05,
    keep: Annotated[int, typer.Option(help="Spans kept at least.")] = 10,
    across: Annotated[bool, typer.Option("--across", help="Let spans cross full stops and lines.")] = False,
    corpus: Annotated[bool, typer.Option("--corpus/--no-corpus", help="Look documents up there.")] = True,
    tokenizer: Annotated[Path | None, typer.Option(help="For an index that holds none.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of an index that does not say: uint16.")] = None,
) -> dict[str, Any]:
    """The training documents an answer echoes word for word, and the steps in which they were read.

    Example: loom trace --index runs/quickstart/index --run runs/quickstart/dpo "Remove any whitespace."
    """
    from loom.trace.corpus import add_corpus
    from loom.trace.page import write_trace_page
    from loom.trace.query import open_index
    from loom.trace.search import find_documents
    from loom.trace.spans import Choice
    from loom.trace.takedown import take_down
    from loom.trace.trace import read_answer
    from loom.trace.trace import trace as follow

    given = [
        name for name, value in (("TEXT", text), ("--chat", chat), ("--find", find)) if value is not None
    ]
    if len(given) + (takedown is not None) != 1:
        raise typer.BadParameter("give one of TEXT, --chat, --find and --takedown")
    opened = open_index(index, tokenizer, dtype)
    if takedown is not None:
        return _show_takedown(take_down(opened, takedown, [run] if run else []))
    if find is not None:
        return _show_found(find_documents(opened, find, documents, run))
    prompt, answer = ("", text or "") if chat is None else read_answer(chat)
    try:
        choice = Choice(min_tokens, max_count, density, keep, across)
    except ValueError as error:
        raise LoomError(f"{error}.") from None
    told = follow(opened, answer, prompt=prompt, run=run, choice=choice, documents=documents)
    if prompt:
        told["prompt"] = prompt
    if corpus:
        add_corpus(opened, told)
    if page is not None:
        write_trace_page(page, told)
        console.say(f"page: {page}")
    _show(told)
    return told


def _show(told: dict[str, Any]) -> None:
    from loom.trace.visible import one_line, step_ranges

    if not told["spans"]:
        console.say("No run of whole words of this text stands in the training tokens.")
        return
    rows = []
    for span in told["spans"]:
        rows.append([one_line(span["text"], WIDTH), span["count"], "", ""])
        for document in span["documents"][:SHOWN]:
            steps = step_ranges(document["steps"], 4) if "steps" in document else None
            name = f"  {one_line(document['id'], WIDTH - 2)}"
            rows.append([name, None, f"{document['source'] or ''} {document['origin']}", steps])
    console.table(
        "Word for word in the training tokens", ["span / document", "count", "place", "steps"], rows
    )


def _show_found(found: dict[str, Any]) -> dict[str, Any]:
    from loom.trace.visible import one_line, step_ranges

    rows = [
        [
            one_line(document["id"], WIDTH),
            f"{document['source'] or ''} {document['origin']}",
            step_ranges(document["steps"], 4) if "steps" in document else None,
        ]
        for document in found["documents"]
    ]
    console.table(f"{found['count']:,} documents", ["document", "place", "steps"], rows, left=3)
    return found


def _show_takedown(found: dict[str, Any]) -> dict[str, Any]:
    from loom.trace.visible import one_line

    rows = [
        [
            one_line(entry["id"], WIDTH),
            len(entry["found"]),
            ", ".join(sorted({f["path"] for f in entry["found"]})),
        ]
        for entry in found["documents"]
    ]
    console.table("Takedown", ["document", "places", "in"], rows)
    return found
