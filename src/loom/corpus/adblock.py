"""Adblock filter lists: which addresses their network rules would block.

`||host^` and friends: `||` anchors at a host or a parent of it, `|` at either end, `*` stands for anything,
`^` for a separator or the end; `/.../` is a regular expression; `@@` excepts, `$important` overrules an
exception. Rules for page elements (`##`) say nothing of addresses. An address of a document is asked for
without a page it was found on, so rules for `domain=`, for first parties alone or for other kinds of
request than a page never apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SEPARATOR = r"(?:[^\w.%-]|$)"
HOST = r"^[a-z][a-z0-9+.-]*://(?:[^/?#]*\.)?"
HOST_PART = re.compile(r"[\w.-]*")
HOST_ENDS = r"(?=[.:/?#]|$)"  # a host is matched by whole labels
HOST_ONLY = re.compile(r"^\|\|([a-z0-9.-]+)\^?$")
ADDRESS_HOST = re.compile(r"^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/:?#]+)", re.I)
ALWAYS = {"important", "third-party", "3p", "all", "match-case", "other"}
ELEMENTS = ("##", "#@#", "#?#", "#$#", "#%#", "$$")


@dataclass(frozen=True)
class Rule:
    """A network rule as a pattern; `host` instead where it is no more than `||host^`."""

    pattern: re.Pattern[str] | None
    host: str
    exception: bool
    important: bool


def parse(line: str) -> Rule | None:
    """A line of a list, or None for a comment, a rule for page elements, and one that can never apply here."""
    line = line.strip()
    if not line or line.startswith(("!", "[", "#")) or any(mark in line for mark in ELEMENTS):
        return None
    exception = line.startswith("@@")
    body = line.removeprefix("@@")
    options: list[str] = []
    if not (body.startswith("/") and body.endswith("/") and len(body) > 2):
        body, _, after = body.rpartition("$") if "$" in body else (body, "", "")
        options = [option.strip().lower() for option in after.split(",") if option.strip()]
    if any(option.startswith("~") and option not in ("~third-party", "~3p") for option in options):
        options = [option for option in options if not option.startswith("~")]  # all kinds but one
    if any(option not in ALWAYS for option in options) or not body:
        return None
    important, match_case = "important" in options, "match-case" in options
    if (found := HOST_ONLY.match(body.lower())) and not match_case and body.endswith("^"):
        return Rule(None, found[1], exception, important)
    if body.startswith("/") and body.endswith("/") and len(body) > 2:
        try:
            return Rule(re.compile(body[1:-1], 0 if match_case else re.I), "", exception, important)
        except re.error:
            return None
    return Rule(re.compile(_translate(body), 0 if match_case else re.I), "", exception, important)


def _translate(body: str) -> str:
    start, end = "", ""
    if body.startswith("||"):
        host = HOST_PART.match(body, 2)
        assert host is not None
        body = body[host.end() :]
        start = HOST + re.escape(host.group()) + ("" if body.startswith("*") else HOST_ENDS)
    elif body.startswith("|"):
        start, body = "^", body[1:]
    if body.endswith("|"):
        end, body = "$", body[:-1]
    middle = "".join(
        ".*" if character == "*" else SEPARATOR if character == "^" else re.escape(character)
        for character in body
    )
    return start + middle + end


class Blocker:
    """The rules of one or more lists; a host is looked up, the other patterns are tried in turn."""

    def __init__(self, lines: Iterable[str]) -> None:
        rules = [rule for line in dict.fromkeys(lines) if (rule := parse(line)) is not None]
        self.count = sum(not rule.exception for rule in rules)  # those that could block something
        self.hosts = {
            key: {rule.host for rule in rules if rule.host and (rule.exception, rule.important) == key}
            for key in ((False, False), (False, True), (True, False), (True, True))
        }
        self.patterns = {
            key: [rule.pattern for rule in rules if rule.pattern and (rule.exception, rule.important) == key]
            for key in self.hosts
        }

    def blocks(self, url: str) -> bool:
        """Whether a rule blocks the address and no exception speaks for it; without a scheme it is http."""
        url = url if "://" in url else f"http://{url}"
        if self._hits(url, (False, True)):
            return True
        if not self._hits(url, (False, False)):
            return False
        return not (self._hits(url, (True, False)) or self._hits(url, (True, True)))

    def _hits(self, url: str, key: tuple[bool, bool]) -> bool:
        if hosts := self.hosts[key]:
            found = ADDRESS_HOST.match(url)
            labels = found[1].lower().split(".") if found else []
            if any(".".join(labels[at:]) in hosts for at in range(len(labels))):
                return True
        return any(pattern.search(url) for pattern in self.patterns[key])
