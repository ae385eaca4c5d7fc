r"""The entries of a page's table of contents, which are plain text.

Formulas of headings arrive there as TeX, `\(L_\text{hybrid}\)`, and API names with their package
and, on the page of a namespace, with that: too long for the sidebar. This hook writes `L_hybrid`,
`PredictorCorrector` and, on the page `eqdiff.nn`, `styles.Strided`.
"""

import re


_FORMULA = re.compile(r"\\\((.*?)\\\)")
_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname)\{([^}]*)\}")
_LONG = 24


def plain(title: str, page: str = "eqdiff") -> str:
    """The title as plain text on a page, with places where a long name may be broken."""
    title = _FORMULA.sub(lambda match: _COMMAND.sub(r"\1", match[1]).replace("\\", ""), title)
    if re.fullmatch(r"eqdiff(\.\w+)+", title):
        title = title.removeprefix(f"{page}.").removeprefix("eqdiff.")
        if len(title) > _LONG:
            title = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[_.])", "<wbr>", title)
    return title


def _walk(items, page: str):
    for item in items:
        item.title = plain(item.title, page)
        _walk(item.children, page)


def on_page_content(html, page, config, files):
    """A MkDocs event: a page has been rendered, its table of contents not yet."""
    _walk(page.toc.items, str(page.title))
    return html
