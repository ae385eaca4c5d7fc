"""Says where names may be broken at the end of a line: `eqdiff.` from `PredictorCorrector`.

Browsers break code anywhere, in the middle of a word, or at each hyphen. Here a long name is broken
after a dot, a slash or an underscore, a short one not at all but in a table on a phone, and a flag,
`--process`, never.
"""

import re


_CODE = re.compile(r"<code>([^<]+)</code>")
_FLAG = re.compile(r"(?<!\S)-[^\s]{1,30}")
_HEADING = re.compile(r'(<span class="doc doc-object-name [^"]*">)([^<\s]+)(</span>)')
_LONG = 30  # Characters; fewer fit a line of a phone.
_AFTER = re.compile(r"(?<=[^./_,=(])([./_,=(])(?=[^./_,=()&;])")


def breakable(text: str) -> str:
    """The name with `<wbr>` where it may be broken: after its dots, or else after anything."""
    dots = re.sub(r"(?<=\w)\.(?=[A-Za-z_])", ".<wbr>", text)
    if max(map(len, dots.split("<wbr>"))) <= _LONG:
        return dots
    return _AFTER.sub(r"\1<wbr>", text)


def _whole(match: re.Match) -> str:
    return f'<span class="whole">{match.group()}</span>'


def _code(match: re.Match) -> str:
    text = match.group(1)
    if " " in text:
        return f"<code>{_FLAG.sub(_whole, text)}</code>"
    whole = ' class="whole"' if len(text) <= _LONG else ""
    return f"<code{whole}>{breakable(text)}</code>"


def on_page_content(content, page, config, files):
    """A MkDocs event: the names in the page's HTML."""
    content = _HEADING.sub(lambda m: m.group(1) + breakable(m.group(2)) + m.group(3), content)
    return _CODE.sub(_code, content)
