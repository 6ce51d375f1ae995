"""Run by the oracle's own Python: Dolma's taggers over JSON lines on standard input.

    python dolma_tag.py TAGGER,TAGGER [LID_MODEL] < documents.jsonl > attributes.jsonl

One line a document: {"id", "attributes": {tagger: {key: [[start, end, score], ...]}}}.
"""

import contextlib
import json
import os
import sys


def main() -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
        from dolma.core.data_types import InputSpec
        from dolma.core.registry import TaggerRegistry
        from dolma.taggers import c4, gopher, language, length, pii, punctuation  # noqa: F401 (they register themselves)

        if len(sys.argv) > 2:
            language.FastTextAllLanguagesDocumentTagger.MODEL_PATH = sys.argv[2]
        made = {name: TaggerRegistry.get(name)() for name in sys.argv[1].split(",")}
    for line in sys.stdin:
        row = json.loads(line)
        spec = InputSpec(id=row["id"], text=row["text"], source=row.get("source", ""))
        found = {name: tagger.tag(spec) for name, tagger in made.items()}
        sys.stdout.write(json.dumps({"id": row["id"], "attributes": found}) + "\n")


if __name__ == "__main__":
    main()
