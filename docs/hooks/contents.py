r"""The entries of a page's table of contents, which are plain text.

Formulas of headings arrive there as TeX, `\(L_\text{hybrid}\)`, and API names with the package in
front, too long for the sidebar: this hook writes `L_hybrid` and `PredictorCorrector`.
"""

import re


_FORMULA = re.compile(r"\\\((.*?)\\\)")
_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname)\{([^}]*)\}")
_LONG = 24


def plain(title: str) -> str:
    """The title as plain text, with places where a long name may be broken."""
    title = _FORMULA.sub(lambda match: _COMMAND.sub(r"\1", match[1]).replace("\\", ""), title)
    if re.fullmatch(r"eqdiff(\.\w+)+", title):
        title = title.removeprefix("eqdiff.")
        if len(title) > _LONG:
            title = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[_.])", "<wbr>", title)
    return title


def _walk(items):
    for item in items:
        item.title = plain(item.title)
        _walk(item.children)


def on_page_content(html, page, config, files):
    """A MkDocs event: a page has been rendered, its table of contents not yet."""
    _walk(page.toc.items)
    return html
