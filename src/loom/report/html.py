"""HTML built from values: text is escaped unless it was built here."""

from __future__ import annotations

from html import escape


class Html(str):
    """Markup that is already escaped. Everything else is text."""

    __slots__ = ()


VOID = frozenset({"br", "hr", "input", "meta", "line", "path", "rect"})


def el(name: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """An element. `class_` is class, `data_x` is data-x; None and False leave an attribute out."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
        parts.append(f" {key}" if value is True else f' {key}="{escape(_plain(value))}"')
    parts.append(">")
    if name not in VOID or children:
        parts += [text(child) for child in children if child is not None]
        parts.append(f"</{name}>")
    elif name in ("line", "path", "rect"):
        parts[-1] = "/>"
    return Html("".join(parts))


def text(value: str) -> Html:
    """`value` escaped, unless it is markup."""
    return value if isinstance(value, Html) else Html(escape(value))


def join(*parts: str | None) -> Html:
    return Html("".join(text(part) for part in parts if part is not None))


def _plain(value: str | float | bool) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
