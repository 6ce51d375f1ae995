"""Run by the oracle's own Python: Dolma's taggers that read files, over JSON lines with metadata.

    python dolma_more.py SETTINGS.json < documents.jsonl > attributes.jsonl

SETTINGS: {"taggers": [names], "models": {name: path}, "lists": {name: [paths]}, "tokenizer": path}.
"""

import contextlib
import json
import os
import sys


def main() -> None:
    with open(sys.argv[1]) as stream:
        settings = json.load(stream)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
        from dolma.core.data_types import InputSpecWithMetadata
        from dolma.core.registry import TaggerRegistry
        from dolma.taggers import (  # noqa: F401 (they register themselves)
            code,
            jigsaw,
            length,
            quality,
            repetitions,
            tokenizers,
            url,
        )
        from tokenizers import Tokenizer

        made = {}
        for name in settings["taggers"]:
            kind = TaggerRegistry.get(name)
            if name in settings.get("models", {}):
                kind.MODEL_PATH = settings["models"][name]
            if name in settings.get("lists", {}):
                kind.BLOCKLIST_PATHS = settings["lists"][name]
            if {"TOKENIZER_IDENTIFIER", "TOKENIZER_NAME_OR_PATH", "TOKENIZER_PATH"} & set(dir(kind)):
                read = Tokenizer.from_file(settings["tokenizer"])
                kind.__init__ = lambda self, read=read: setattr(self, "tokenizer", read)
            made[name] = kind()
    for line in sys.stdin:
        row = json.loads(line)
        spec = InputSpecWithMetadata(
            id=row["id"], text=row["text"], source=row.get("source", ""), metadata=row.get("metadata") or {}
        )
        found = {}
        for name, tagger in made.items():
            try:
                found[name] = tagger.tag(spec)
            except Exception as error:  # what Dolma itself does to such a text
                found[name] = {"error": str(error)}
        sys.stdout.write(json.dumps({"id": row["id"], "attributes": found}) + "\n")


if __name__ == "__main__":
    main()
