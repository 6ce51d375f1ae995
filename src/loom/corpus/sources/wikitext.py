"""MediaWiki markup to plain text: templates, tables, references and files go, links keep their words."""

from __future__ import annotations

import html
import re

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
REFERENCE = re.compile(
    r"<ref[^>/]*/>|<ref[^>]*>.*?</ref>|<(math|gallery|score|timeline)[^>]*>.*?</\1>", re.S | re.I
)
TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
DROPPED_LINK = re.compile(r"\[\[(?:file|image|category|media)\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.I)
LINK = re.compile(r"\[\[(?:[^|\[\]]*\|)*([^|\[\]]*)\]\]")
EXTERNAL = re.compile(r"\[(?:https?|ftp)://[^\s\]]+\s*([^\]]*)\]")
TAG = re.compile(r"</?[a-zA-Z][^>]*>")
QUOTES = re.compile(r"'{2,}")
HEADING = re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.MULTILINE)
MARKS = re.compile(r"^[*#:;]+\s*", re.MULTILINE)
SWITCH = re.compile(r"__[A-Z]+__")
EMPTY = re.compile(r"\n{3,}")
DEEPEST = 20  # nesting of templates that is unwrapped


def wikitext_to_text(markup: str) -> str:
    """The prose of an article; headings stand on lines of their own."""
    text = REFERENCE.sub("", COMMENT.sub("", markup))
    for _ in range(DEEPEST):
        text, count = TEMPLATE.subn("", text)
        if not count:
            break
    text = LINK.sub(r"\1", DROPPED_LINK.sub("", text))
    text = TAG.sub("", EXTERNAL.sub(r"\1", text))
    text = SWITCH.sub("", MARKS.sub("", HEADING.sub(r"\n\1\n", QUOTES.sub("", text))))
    text = html.unescape(text)
    return EMPTY.sub("\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
