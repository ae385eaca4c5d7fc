"""Says where names may be broken at the end of a line: `eqdiff.` from `PredictorCorrector`.

Browsers break code anywhere, in the middle of a word, or at each hyphen. Here a short name is never
broken, and a long one after a dot, a slash or an underscore.
"""

import re


_CODE = re.compile(r"<code>([^<\s]+)</code>")
_HEADING = re.compile(r'(<span class="doc doc-object-name [^"]*">)([^<\s]+)(</span>)')
_SHORT = 14  # Characters.
_LONG = 26
_AFTER = re.compile(r"(?<=[^./_,=(])([./_,=(])(?=[^./_,=()&;])")


def breakable(text: str) -> str:
    """The name with `<wbr>` where it may be broken: after its dots, or else after anything."""
    dots = re.sub(r"(?<=\w)\.(?=[A-Za-z_])", ".<wbr>", text)
    if max(map(len, dots.split("<wbr>"))) <= _LONG:
        return dots
    return _AFTER.sub(r"\1<wbr>", text)


def _code(match: re.Match) -> str:
    text = match.group(1)
    if len(text) <= _SHORT or ("." not in text and len(text) <= _LONG):
        return f'<code class="whole">{text}</code>'
    return f"<code>{breakable(text)}</code>"


def on_page_content(content, page, config, files):
    """A MkDocs event: the names in the page's HTML."""
    content = _HEADING.sub(lambda m: m.group(1) + breakable(m.group(2)) + m.group(3), content)
    return _CODE.sub(_code, content)
