"""Run by the oracle's own Python: datatrove's filters over JSON lines on standard input.

    python datatrove_filter.py CASES.json < documents.jsonl > decisions.jsonl

CASES: [[filter class, settings], ...]. One line a document: one [kept, reason, text] a case.
"""

import json
import sys


def main() -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    known = {
        kind.__name__: kind
        for kind in (C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
    }
    with open(sys.argv[1]) as stream:
        made = [known[name](**settings) for name, settings in json.load(stream)]
    for line in sys.stdin:
        row = json.loads(line)
        decisions = []
        for filter_ in made:
            document = Document(text=row["text"], id=row["id"])
            try:
                answer = filter_.filter(document)
            except ZeroDivisionError:
                answer = (False, "error")
            kept, reason = answer if isinstance(answer, tuple) else (answer, "")
            decisions.append([bool(kept), reason, document.text])
        sys.stdout.write(json.dumps(decisions) + "\n")


if __name__ == "__main__":
    main()
