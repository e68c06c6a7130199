"""HTML made of escaped parts: everything that is not yet `Html` is text, and is escaped."""

import html
from collections.abc import Iterable


class Html(str):
    """A piece of HTML, which is not escaped again. Make it of the package's own text, or with the functions below."""


def escaped(value: object) -> Html:
    """A value as HTML text; unchanged if it is HTML already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(escaped(between).join(map(escaped, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. In attribute names `_` stands for `-`, and a last `_` is dropped (`class_`).

    If an attribute is True, it is written without a value; if it is None or False, it is left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opening = " ".join(words)
    if name in ("input", "meta", "rect", "line", "path", "circle", "col") and not children:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{name}>")
