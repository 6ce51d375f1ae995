"""What URLs tell: domains, schemes, suffixes, countries; and when documents were written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from publicsuffixlist import PublicSuffixList

from loom.survey.analysis import Chunk, Places, word_set
from loom.survey.sketches import Partial, Tally

TOP = 50
URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*):(?://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)(?::\d*)?)?([^?#]*)")
YEAR = re.compile(r"(?<!\d)(19[5-9]\d|20[0-4]\d)(?:[/-](0[1-9]|1[0-2]))?(?!\d)")
DATE_KEYS = ("date", "published", "timestamp", "date_download", "warc_date")
# Country codes mostly sold to the world; what they say of a place is nothing.
SOLD = word_set(
    """
    ai cc co fm gg io is la ly me nu sh st to tv vc ws xyz
    """
)
FILE = re.compile(r"\.([A-Za-z0-9]{1,5})$")


def host_of(url: str) -> tuple[str, str, str]:
    """(scheme, host, path) in lower case as far as they have no case; empty where there is none."""
    match = URL.match(url.strip())
    if match is None:
        return "", "", ""
    return match[1].lower(), (match[2] or "").lower().rstrip("."), match[3]


@cache
def _suffixes() -> PublicSuffixList:
    """The public suffix list as it ships with its package: the part that registries own."""
    return PublicSuffixList(only_icann=True)


def suffix_of(host: str) -> str:
    """The public part of a host's name, under which names are registered: co.uk of www.bbc.co.uk."""
    last = host.rpartition(".")[2]
    if last == host or last.isdigit() or host.startswith("["):
        return ""
    return _suffixes().publicsuffix(host) or ""


def country_of(host: str) -> str:
    """A host's country as ISO 3166 code, by its country-code domain; empty where that says nothing."""
    last = host.rpartition(".")[2]
    if len(last) != 2 or not last.isalpha() or last in SOLD or last == "eu":
        return ""
    return "GB" if last == "uk" else last.upper()


class Urls:
    """Documents and words by some part of their URL."""

    def __init__(self, name: str, title: str) -> None:
        self.name, self.title = name, title

    def start(self) -> Partial:
        return {"parts": Tally(2), "known": Tally(2)}

    def part(self, url: str) -> list[str]:
        scheme, host, path = host_of(url)
        match self.name:
            case "domains":
                return [host.removeprefix("www.")] if host else []
            case "schemes":
                return [scheme] if scheme else []
            case "suffixes":
                return [suffix] if (suffix := suffix_of(host)) else []
            case "extensions":
                return [found[1].lower()] if (found := FILE.search(path)) else []
            case _:
                return [country] if (country := country_of(host)) else []

    def map(self, partial: Partial, chunk: Chunk) -> None:
        parts, known = partial["parts"], partial["known"]
        assert isinstance(parts, Tally)
        assert isinstance(known, Tally)
        for url, words in zip(chunk.urls, chunk.words.counts.tolist(), strict=True):
            named = self.part(url) if url is not None else []
            known.add("named" if named else "url" if url is not None else "none", 1, words)
            for name in named:
                parts.add(name, 1, words)

    def wanted(self, partial: Partial) -> Sequence[int]:
        return []

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        parts, known = partial["parts"], partial["known"]
        assert isinstance(parts, Tally)
        assert isinstance(known, Tally)
        without = sum(row[0] for name, row in known.values.items() if name != "named")
        return {
            "different": len(parts.values),
            "documents": known.values.get("named", [0, 0])[0],
            "documents_without": without,
            "by_documents": _ranked(parts, 0),
            "by_words": _ranked(parts, 1),
            "exact": parts.missed == 0,
            "missed": parts.missed,
        }


class Dates:
    """Documents by year and month: of `created`, else of a date in the metadata, else in the URL's path."""

    name, title = "dates", "When documents were written"

    def start(self) -> Partial:
        return {"months": Tally(2), "from": Tally(1)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        months, origin = partial["months"], partial["from"]
        assert isinstance(months, Tally)
        assert isinstance(origin, Tally)
        created = chunk.batch.table.column("created").to_pylist()
        rows = zip(created, chunk.metadata, chunk.urls, chunk.words.counts.tolist(), strict=True)
        for stamp, metadata, url, words in rows:
            kind, date = _date(stamp, metadata, url)
            origin.add(kind, 1)
            if date:
                months.add(date, 1, words)

    def wanted(self, partial: Partial) -> Sequence[int]:
        return []

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        months, origin = partial["months"], partial["from"]
        assert isinstance(months, Tally)
        assert isinstance(origin, Tally)
        years = Tally(2)
        for month, row in months.values.items():
            years.add(month[:4], *row)
        return {
            "years": _by_time(years),
            "months": _by_time(months),
            "known_from": {name: row[0] for name, row in origin.ranked()},
        }


def _date(created: Any, metadata: dict[str, Any], url: str | None) -> tuple[str, str]:
    """(what told it, year or year-month)."""
    stamps = [("created", created), *((key, metadata.get(key)) for key in DATE_KEYS)]
    for kind, stamp in stamps:
        if isinstance(stamp, str) and (match := YEAR.match(stamp.strip())):
            return kind, match[1] + (f"-{match[2]}" if match[2] else "")
    if url is not None and (match := YEAR.search(host_of(url)[2])):
        return "url", match[1] + (f"-{match[2]}" if match[2] else "")
    return "nothing", ""


def _ranked(parts: Tally, column: int) -> list[dict[str, Any]]:
    return [{"name": name, "documents": row[0], "words": row[1]} for name, row in parts.ranked(TOP, column)]


def _by_time(tally: Tally) -> list[dict[str, Any]]:
    return [
        {"date": name, "documents": row[0], "words": row[1]} for name, row in sorted(tally.values.items())
    ]
