"""Turns documentation markup (reStructuredText, numpydoc, Markdown) into prose.

Code, doctests, tables, headings and most directives are dropped. Parameters lose their names and types,
but keep their descriptions.
"""

import re

DOCUMENT_WORDS = 12  # a text with fewer words is not a document
_PARAGRAPH_WORDS = 5
_HANGING = 8  # a larger change of indent, in characters, begins a new paragraph
_LETTERS = 0.72  # minimum share of letters in a paragraph; prose has about 0.8, code and tables 0.5
_SYMBOLS = 0.045  # maximum share of symbols

_DIRECTIVE = re.compile(r"^(\s*)\.\. ?(\S.*)?$")
_PROSE_DIRECTIVE = re.compile(r"^(note|warning|tip|important|hint|caution|attention|admonition|seealso|rubric)::")
_DROPPED_SECTION = re.compile(
    r"^#*\s*(references?|see also|examples? gallery|license|bibliography|citations?|changelog|links)\s*:?$", re.I
)
_UNDERLINE = re.compile(r"^\s*([-=~^\"'`*+#_.:])\1{2,}\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_NUMPY_PARAMETER = re.compile(r"^\s*[\w*.\\`'\"{][^:.]{0,80}?\s:(\s.{0,160})?$")
# `name (type): ` in Google style, `:param name: ` in Sphinx style
_PARAMETER = re.compile(
    r"^\s*(?:[`*]{0,4}[A-Za-z_][\w.]*[`*]{0,4}(?:\s*\([^)]*\))?\s?[`*]{0,4}:[`*]{0,2}\s+(?=\S)"
    r"|[:@](?:param|type|returns?|rtype|raises?|arg|keyword|var|ivar|kwarg)\b[^:]*:\s*)"
)
_SECTION = re.compile(
    r"^\s*(args|arguments|parameters|returns?|yields?|raises|attributes|notes?|examples?|usage|warnings?|methods"
    r"|keyword arguments|keyword args|kwargs|todo|see also|references?|other parameters|default|defaults):\s*$",
    re.I,
)
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)]|[a-z]\))\s+")

_INLINE = [
    (re.compile(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|</?[a-zA-Z][^<>]{0,200}>|\[[^\]]*\]\[[^\]]*\]"), " "),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # Markdown link
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{0,2}"), r"\1"),  # reStructuredText link
    (re.compile(r":(?:[\w+.-]+:)?[\w+.-]+:`~?(?:[\w.]*\.)?([^`]*)`"), r"\1"),  # role
    (re.compile(r"\[(?:\d+|[A-Z]\w*\d\w*)\]_?|\s?\|[\w-]+\|_?"), ""),  # footnote, substitution
    (re.compile(r"(?:https?|ftp)://\S*[\w/]|\S+@\S+\.\w+"), ""),
    (re.compile(r"`{1,2}([^`]*)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=\S)([^*]+?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"\\([*_`|<>\\])"), r"\1"),
    (re.compile(r"\(\s*\)|<\s*>|\[\s*\]|::$"), ""),
    (re.compile(r"\s+([.,;])(?=\s|$)"), r"\1"),
    (re.compile(r"\s+"), " "),
]


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose in one docstring or page, in order; empty if there is too little prose."""
    found = [clean for block in _blocks(text.expandtabs()) if is_prose(clean := _inline(block))]
    return found if sum(len(paragraph.split()) for paragraph in found) >= DOCUMENT_WORDS else []


def is_prose(text: str) -> bool:
    """Whether a paragraph reads like a sentence: enough words, enough letters, few symbols."""
    if len(words := text.split()) < _PARAGRAPH_WORDS or sum(map(str.islower, words)) < 0.45 * len(words):
        return False
    letters = sum(map(str.isalpha, text))
    symbols = sum(map(text.count, "=<>{}|\\^_~@#$%&*+/[]"))
    return letters >= _LETTERS * len(text) and symbols <= _SYMBOLS * len(text)


def _inline(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = text.strip(" -–—|:*")
    return text[:1].upper() + text[1:]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _blocks(text: str) -> list[str]:
    """Joined lines of each paragraph, list item or parameter description."""
    lines = text.split("\n")
    blocks: list[list[str]] = [[]]
    last_indent = 0
    skip_deeper = -1  # indent of the block being dropped; deeper lines are dropped too
    skip_paragraph = fenced = dropped_section = False
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if _FENCE.match(line):
            fenced = not fenced
            continue
        if not line.strip():
            skip_paragraph = False
            blocks.append([])
            continue
        indent = _indent(line)
        if fenced or (skip_deeper >= 0 and indent > skip_deeper) or skip_paragraph:
            continue
        skip_deeper = -1
        if _UNDERLINE.match(line):
            continue
        heading = line.lstrip().startswith("#") or (_UNDERLINE.match(following) and len(following.strip()) >= 3)
        if heading or _SECTION.match(line):
            dropped_section = bool(_DROPPED_SECTION.match(line.strip()))
            blocks.append([])
            continue
        if dropped_section:
            continue
        if line.lstrip().startswith((">>>", "$ ", "In [", "%", "@")):
            skip_paragraph = not line.lstrip().startswith("@")
            continue
        if directive := _DIRECTIVE.match(line):
            blocks.append([])
            if said := _PROSE_DIRECTIVE.match(directive[2] or ""):
                blocks[-1].append((directive[2] or "")[said.end() :].strip())
            else:
                skip_deeper = indent
            continue
        if line.rstrip().endswith("::"):
            skip_deeper = indent
        if _NUMPY_PARAMETER.match(line) and following.strip() and _indent(following) > indent:
            blocks.append([])
            continue
        bare = _PARAMETER.sub("", _BULLET.sub("", line))
        if bare != line or (blocks[-1] and abs(indent - last_indent) > _HANGING):
            blocks.append([])
        blocks[-1].append(bare.strip())
        last_indent = indent
    return [_dehyphenate(block) for block in blocks if block]


def _dehyphenate(lines: list[str]) -> str:
    """The lines joined by spaces. A word broken after a hyphen at a line end is rejoined, and keeps its hyphen."""
    return re.sub(r"(?<=[a-z])- (?=[a-z]{3,}\b)", "-", " ".join(lines))
