"""Source code: RedPajama's and StarCoder's statistics, secrets, copyright comments, with Dolma's keys.

The StarCoder rules read `ext` (or `extension`) and `max_stars_count` (or `stars`) in the metadata. Their
packages (pygments, beautifulsoup4, detect-secrets) are an extra: `taggers`.
"""

from __future__ import annotations

import ast
import io
import re
import threading
import tokenize
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.corpus.taggers.length import gaps
from loom.errors import LoomError

COMMENT = re.compile(r"/\*[^*]*\*+(?:[^/*][^*]*\*+)*/")
COPYRIGHT = re.compile("copyright", re.IGNORECASE)
LANGUAGES = {
    "python": "py bzl gyp lmi pyde pyp pyt pyw tac wsgi xpy",
    "java": "java",
    "javascript": "js _js bones es6 jake jsb jscad jsfl jsm jss njs pac sjs ssjs xsjs xsjslib",
    "html": "html htm htmlhl xht xhtml",
}
LANGUAGE_OF = {extension: name for name, found in LANGUAGES.items() for extension in found.split()}
LEFT_OUT = {"assembly", "csv", "json", "json5", "jsonld", "jsoniq", "svg"}
NO_OPINION = 0.5  # Dolma's value for languages whose comments it does not measure
FEWEST_SHOWN = 100  # code points of an HTML page's text, else its ratio is 0
_settings_lock = threading.Lock()  # detect-secrets keeps its plugins in a global


def _missing(error: ImportError) -> LoomError:
    return LoomError(f"This tagger needs {error.name}: pip install 'loom-lm[taggers]'.")


@tagger("code_redpajama_taggers_v1", spans="document", source="Dolma 1.2")
def code_redpajama_taggers_v1() -> Tagger:
    """Longest and mean line, the share of letters and digits, letters a token."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        values = np.zeros((len(texts), 4))
        for row, text in enumerate(texts.strings):
            lines = [len(line) for line in text.splitlines()]
            values[row] = (
                max(lines, default=0),
                float(np.mean(lines)) if lines else 0.0,
                sum(map(str.isalnum, text)) / len(text) if text else 0.0,
                sum(map(str.isalpha, text)) / gaps(text),
            )
        keys = ("max_line_length_doc", "avg_line_length_doc", "alnum_prop_doc", "alpha_token_prop_doc")
        return {key: whole(texts.lengths, values[:, column]) for column, key in enumerate(keys)}

    return tag


@tagger("code_copyright_comments_v1", spans="spans, document", source="Dolma 1.2")
def code_copyright_comments_v1() -> Tagger:
    """The first `/* */` if it speaks of copyright, else the comment lines a file begins with; `doc`: their share."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        notices: list[Any] = []
        blocks: list[Any] = []
        shares = np.zeros(len(texts))
        for row, text in enumerate(texts.strings):
            kind, span = _header(text)
            notices.append([(*span, 1.0)] if kind == "copyright_notice" else None)
            blocks.append([(*span, 1.0)] if kind == "comment_block" else None)
            if kind:
                shares[row] = (span[1] - span[0] + 1) / len(text) if text else -1.0
        return {
            "copyright_notice": from_lists(notices),
            "comment_block": from_lists(blocks),
            "doc": whole(texts.lengths, shares),
        }

    return tag


def _header(text: str) -> tuple[str, tuple[int, int]]:
    """("copyright_notice" | "comment_block" | "", span): newlines between lines are not counted, as in Dolma."""
    if found := COMMENT.search(text):
        return ("copyright_notice" if COPYRIGHT.search(found.group()) else ""), found.span()
    end = lines = 0
    for line in text.split("\n"):
        if line and not line.startswith(("//", "#", "--")):
            break
        lines += 1
        end += len(line) or 1
    return ("comment_block" if lines else ""), (0, end)


@tagger("code_starcoder_taggers_v2", spans="document", source="Dolma 1.2")
def code_starcoder_taggers_v2() -> Tagger:
    """XML at the start, GitHub stars, the share of comments (Python, Java, JavaScript), of text in HTML."""
    try:
        import bs4  # noqa: F401
        import pygments  # noqa: F401
    except ImportError as error:
        raise _missing(error) from None

    def tag(texts: Texts) -> Mapping[str, Spans]:
        values = np.zeros((len(texts), 4))
        metadata = texts.batch.table.column("metadata").to_pylist()
        for row, (text, raw) in enumerate(zip(texts.strings, metadata, strict=True)):
            known = orjson.loads(raw) if raw else {}
            language = LANGUAGE_OF.get(known.get("ext") or known.get("extension") or "", "")
            values[row] = (
                "<?xml version=" in text[:100],
                float(known.get("max_stars_count") or known.get("stars") or 0),
                _comments(text, language) if language in ("python", "java", "javascript") else NO_OPINION,
                _shown(text) if language == "html" else 1.0,
            )
        keys = (
            "has_xml_template_doc",
            "num_github_stars_doc",
            "code_to_comment_ratio_doc",
            "code_to_text_ratio_html_doc",
        )
        return {key: whole(texts.lengths, values[:, column]) for column, key in enumerate(keys)}

    return tag


def _comments(text: str, language: str) -> float:
    """Code points of comments (and of Python's docstrings) by those of the text."""
    if not text:
        return 0.0
    if language == "python":
        return len(f"{_docstrings(text)}\n{_python_comments(text)}".strip()) / len(text)
    from pygments import lex
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment

    kinds = (Comment.Multiline, Comment.Single)
    return sum(len(value) for kind, value in lex(text, get_lexer_by_name(language)) if kind in kinds) / len(
        text
    )


def _docstrings(text: str) -> str:
    """Docstrings of modules, classes and functions; none of a file that does not parse. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        return "\n".join(found for node in nodes if (found := ast.get_docstring(node)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def _python_comments(text: str) -> str:
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return ""
    return "".join(token.string for token in tokens if token.type == tokenize.COMMENT).replace("#", "")


def _shown(page: str) -> float:
    """The share of an HTML page that a reader sees, 0 where that is little; -1 for a page that cannot be read."""
    from bs4 import BeautifulSoup

    if not page:
        return -1.0
    try:
        soup = BeautifulSoup(page, features="html.parser")
        for hidden in soup(["script", "style"]):
            hidden.extract()
        text = soup.get_text()
    except Exception:  # whatever a parser says to a broken page, the page is what is wrong
        return -1.0
    return len(text) / len(page) * (len(text) > FEWEST_SHOWN)


Find = Callable[[str], list[tuple[str, int, int]]]


def _secrets() -> tuple[list[str], Find]:
    """The kinds of secrets there are, and a function that finds them: (kind, start, end) in code points."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.core.scan import _process_line_based_plugins
        from detect_secrets.core.secrets_collection import SecretsCollection
        from detect_secrets.settings import default_settings
    except ImportError as error:
        raise _missing(error) from None

    def find(text: str) -> list[tuple[str, int, int]]:
        lines = text.splitlines()
        secrets = SecretsCollection()
        with _settings_lock, default_settings():
            for secret in _process_line_based_plugins(list(enumerate(lines, 1)), filename="code_str.yml"):
                secrets["code_str.yml"].add(secret)
        spans = []
        for _, secret in secrets:
            line, value = lines[secret.line_number - 1], secret.secret_value or ""
            start = text.find(line) + line.find(value)
            spans.append((_kind(secret.type), start, start + len(value)))
        return spans

    return [_kind(name) for name in get_mapping_from_secret_type_to_class()], find


def _kind(name: str) -> str:
    return f"SECRET_{name.replace(' ', '_')}"


@tagger("code_secrets_v1", spans="spans, document", source="Dolma 1.2")
def code_secrets_v1() -> Tagger:
    """Keys and passwords as detect-secrets finds them, `SECRET_<kind>`; `doc`: secrets a word."""
    kinds, find = _secrets()

    def tag(texts: Texts) -> Mapping[str, Spans]:
        out: dict[str, list[Any]] = {kind: [None] * len(texts) for kind in kinds}
        shares = np.zeros(len(texts))
        for row, text in enumerate(texts.strings):
            spans = find(text)
            for kind, start, end in spans:
                out[kind][row] = [*(out[kind][row] or []), (start, end, 1.0)]
            words = len(text.split())
            shares[row] = len(spans) / words if words else -1.0
        keyed = {kind: from_lists(out[kind]) for kind in sorted(out)}
        return {**keyed, "doc": whole(texts.lengths, shares)}

    return tag


@tagger("code_secrets_v2", spans="spans", source="Loom")
def code_secrets_v2() -> Tagger:
    """`secret`: every place where a secret that detect-secrets finds stands, of whatever kind."""
    _, find = _secrets()

    def everywhere(text: str) -> list[tuple[int, int, float]]:
        values = {text[start:end] for _, start, end in find(text)} - {""}
        return sorted(
            (m.start(), m.end(), 1.0) for value in values for m in re.finditer(re.escape(value), text)
        )

    def tag(texts: Texts) -> Mapping[str, Spans]:
        return {"secret": from_lists([everywhere(text) or None for text in texts.strings])}

    return tag


@tagger("stack_left_out_v1", spans="document", source="Dolma's data sheet")
def stack_left_out_v1() -> Tagger:
    """`language`: the file is in a language that Dolma leaves out of the Stack: assembly, csv, json, svg."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        metadata = (
            orjson.loads(raw) if raw else {} for raw in texts.batch.table.column("metadata").to_pylist()
        )
        named = [str(known.get("language") or known.get("lang") or "").lower() for known in metadata]
        return {"language": whole(texts.lengths, 1.0, np.array([name in LEFT_OUT for name in named], bool))}

    return tag
