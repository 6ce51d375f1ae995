"""Addresses and hosts on lists that the user names: blocklists, allowlists, Adblock lists.

Dolma's names, keys and ways to read a list; its lists are not in the package, so each of its taggers takes
the files it should read. The address is `url` in the metadata.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.corpus.adblock import Blocker
from loom.corpus.attributes import Spans, whole
from loom.corpus.documents import read_lines
from loom.corpus.taggers import Factory, Tagger, Texts, tagger
from loom.errors import LoomError

LISTS = "lists of addresses or hosts (text, .gz)"
ADBLOCK = "Adblock lists"
WIKIDATA = "Wikidata's answers (JSON)"
KEYS = ("url",)
PARTS = re.compile(
    r"^(?:[a-z][a-z0-9+.-]*://)?(?:[^/?#@]*@)?([^/:?#]*|\[[^\]]*\])(?::(\d+))?(/[^?#]*)?", re.I
)
ADDRESS_AND_HOST = re.compile(r"([0-9a-f\.\:]+)\s+(([a-z0-9\-_]+\.?){2,}|localhost|localdomain)")
HOST_LINE = re.compile(r"^(([a-z0-9\-_]+\.?){2,}|localhost|localdomain)")
ADBLOCK_LINE = re.compile(r"\|+(([a-z0-9\-_]+\.?){2,}|localhost|localdomain)\^")
BY_HOST = (
    "domain_blocklist_utp_v1", "domain_blocklist_phishing_v1", "blocklist_project_nsfw_v1",
    "blocklist_project_social_v1", "blocklist_project_crime_v1", "blocklist_project_vice_v1",
    "blocklist_project_ads_v1", "blocklist_firebog_ads_v1", "blocklist_firebog_crypto_v1",
    "blocklist_firebog_malicious_v1", "blocklist_firebog_nsfw_v1", "blocklist_firebog_social_v1",
    "blocklist_firebog_suspicious_v1", "blocklist_firebog_trackers_v1", "blocklist_hosts_adware_malware_v1",
    "blocklist_hosts_fakenews_v1", "blocklist_hosts_gambling_v1", "blocklist_hosts_porn_v1",
    "blocklist_hosts_social_v1",
)  # fmt: skip
BY_ADBLOCK = (
    "oisd_small_abp_v1", "oisd_big_abp_v1", "oisd_nsfw_abp_v1", "brave_core_abp_v1", "brave_nsfw_abp_v1",
)  # fmt: skip
Check = Callable[[str], bool]


def _make(listed: Check) -> Tagger:
    """`url`: the whole document where its address is on a list."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        metadata = texts.batch.table.column("metadata").to_pylist()
        hit = np.zeros(len(texts), bool)
        for row, raw in enumerate(metadata):
            url = (orjson.loads(raw) if raw else {}).get("url")
            hit[row] = isinstance(url, str) and bool(url.strip()) and listed(url)
        return {"url": whole(texts.lengths, 1.0, hit)}

    return tag


def read_lists(paths: Iterable[Path]) -> Iterator[str]:
    """The lines of lists, as text."""
    for path in paths:
        for line in read_lines(path):
            yield line.decode("utf-8", "replace")


def clean(url: str) -> str:
    """Host, port and path in lower case, without scheme, query and trailing slashes."""
    found = PARTS.match(url.strip())
    host, port, path = found.groups() if found else (url, None, None)
    return f"{host}{f':{port}' if port else ''}{path or ''}".rstrip("/").lower()


def hosts(url: str) -> tuple[str, ...]:
    """The host with and without `www.`; as in Dolma every leading w and dot goes, on both sides alike."""
    found = PARTS.match(clean(url))
    host = found[1] if found else ""
    if not host:
        return ()
    bare = host.lstrip("w.")
    return bare, f"www.{bare}"


def entries(line: str, cleaned: Callable[[str], tuple[str, ...]]) -> Iterator[str]:
    """What a line of a hosts file, a plain list or an Adblock list names; nothing for a comment."""
    line = line.strip().lower()
    if not line or line.startswith(("#", ";", "!")):
        return
    if found := ADDRESS_AND_HOST.match(line):
        if _is_ip(found[1]):
            yield found[1]
            if found[2] not in ("localhost", "localdomain"):
                yield from cleaned(found[2])
    elif HOST_LINE.match(line):
        yield from cleaned(line)
    elif found := ADBLOCK_LINE.match(line):
        yield found[1]


def _is_ip(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
            return True
        except OSError:
            continue
    return False


def _known(lines: Iterable[str], cleaned: Callable[[str], tuple[str, ...]]) -> set[str]:
    return _some({entry for line in lines for entry in entries(line, cleaned)})


def _some(known: set[str]) -> set[str]:
    if not known:
        raise LoomError("The lists hold no address: a tagger that reads them could never match.")
    return known


def by_host(*paths: Path) -> Tagger:
    """The host is on a list, with or without `www.`."""
    known = _known(read_lists(paths), hosts)
    return _make(lambda url: any(host in known for host in hosts(url)))


def by_adblock(*paths: Path) -> Tagger:
    """An Adblock rule would block the address."""
    blocker = _blocker(paths)
    return _make(lambda url: blocker.blocks(clean(url)))


def _blocker(paths: Iterable[Path]) -> Blocker:
    blocker = Blocker(read_lists(paths))
    if not blocker.count:
        raise LoomError(
            "The Adblock lists hold no rule for addresses: a tagger that reads them could never match."
        )
    return blocker


def _named(name: str, needs: str, make: Factory) -> None:
    tagger(name, spans="document", source="Dolma 1.2", needs=needs, keys=KEYS)(make)


for _name in BY_HOST:
    _named(_name, LISTS, by_host)
for _name in BY_ADBLOCK:
    _named(_name, ADBLOCK, by_adblock)


@tagger("link_blocklist_phishing_v1", spans="document", source="Dolma 1.2", needs=LISTS, keys=KEYS)
def link_blocklist_phishing_v1(*paths: Path) -> Tagger:
    """The address (host, port and path) is a line of a list."""
    known = _some({line.strip().lower() for line in read_lists(paths) if not line.startswith("#")} - {""})
    return _make(lambda url: clean(url) in known)


@tagger("allowlist_wikidata_cleaned_v1", spans="document", source="Dolma 1.2", needs=WIKIDATA, keys=KEYS)
@tagger("allowlist_wikidata_v1", spans="document", source="Dolma 1.2", needs=WIKIDATA, keys=KEYS)
def allowlist_wikidata_v1(*paths: Path) -> Tagger:
    """The host, or what is left without its first labels, is a website in Wikidata (Dolma's cleaning never ran)."""
    known: set[str] = set()
    for path in paths:
        for number, line in enumerate(read_lines(path), 1):
            for row in _answers(path, number, line):
                found: Any = row.get("url") if isinstance(row, dict) else None
                for host in _bases(found) if isinstance(found, str) else ():
                    known |= set(entries(host, _bases))
    _some(known)
    return _make(lambda url: any(host in known for host in _bases(url)))


def _answers(path: Path, number: int, line: bytes) -> Iterable[Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LoomError(f"{path}, row {number:,}, is not JSON ({error}); it should be {WIKIDATA}.") from None
    return found if isinstance(found, list) else [found]


def _bases(url: str) -> tuple[str, ...]:
    found: list[str] = []
    for host in hosts(url):
        found += [host, ".".join(host.rsplit(".", 2)[1:]) if host.count(".") > 2 else host]
    return tuple(found)


@tagger("url_hosts_v1", spans="document", source="Loom", needs=LISTS, keys=KEYS)
def url_hosts_v1(*paths: Path) -> Tagger:
    """The host or a parent of it is on a list; `www.` is a label like any other, and `web.com` stays itself."""

    def host_of(url: str) -> tuple[str, ...]:
        found = PARTS.match(clean(url))
        host = (found[1] if found else "").removeprefix("www.")
        return (host,) if host else ()

    known = _known(read_lists(paths), host_of)

    def listed(url: str) -> bool:
        labels = (host_of(url) or ("",))[0].split(".")
        return any(".".join(labels[at:]) in known for at in range(len(labels)))

    return _make(listed)


@tagger("url_adblock_v1", spans="document", source="Loom", needs=ADBLOCK, keys=KEYS)
def url_adblock_v1(*paths: Path) -> Tagger:
    """An Adblock rule would block the address, asked for with its scheme and query as they are."""
    return _make(_blocker(paths).blocks)
