"""Says where names may be broken at the end of a line: `eqdiff.` from `PredictorCorrector`.

Browsers break code anywhere, in the middle of a word, or at each hyphen. Here a long name is broken
after a dot or between its words, a short one not at all but in a table on a phone, and a flag,
`--process`, never.
"""

import re


_CODE = re.compile(r"<code>([^<]+)</code>")
_FLAG = re.compile(r"(?<!\S)-[^\s]{1,30}")
_HEADING = re.compile(r'(<span class="doc doc-object-name [^"]*">)([^<\s]+)(</span>)')
_LINE = 32  # Characters of a line of a phone; and of a column there.
_COLUMN = 20
_DOT = re.compile(r"(?<=\w\.)(?=[A-Za-z_])")
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[^./_,=(][./_,=(])(?=[^./_,=()&;])")


def breakable(text: str) -> str:
    """The name with `<wbr>` where it may be broken: after dots, and long parts between words."""
    if "-" in text and len(text) <= _LINE:  # A file's name, or a flag.
        return text
    parts = _DOT.split(text)
    return "<wbr>".join(_WORD.sub("<wbr>", p) if len(p) > _COLUMN else p for p in parts)


def _whole(match: re.Match) -> str:
    return f'<span class="whole">{match.group()}</span>'


def _code(match: re.Match) -> str:
    text = match.group(1)
    if " " in text:
        text = _FLAG.sub(_whole, re.sub(rf"\S{{{_COLUMN + 1},}}", lambda m: breakable(m[0]), text))
        return f"<code>{text}</code>"
    whole = ' class="whole"' if len(text) <= _LINE else ""
    return f"<code{whole}>{breakable(text)}</code>"


def on_page_content(content, page, config, files):
    """A MkDocs event: the names in the page's HTML."""
    content = _HEADING.sub(lambda m: m.group(1) + breakable(m.group(2)) + m.group(3), content)
    return _CODE.sub(_code, content)
