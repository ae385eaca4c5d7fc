r"""Turns every formula into MathML while the site is built: no network and no script to read it.

`pymdownx.arithmatex` (generic mode) has marked formulas as `<span class="arithmatex">\(…\)</span>`
and `<div class="arithmatex">\[…\]</div>`; `latex2mathml` converts each. Browsers implement MathML
Core, a subset of what `latex2mathml` writes, so the rest of this file mends the differences: the
alphabets (𝒩, 𝔼, 𝐱) become Unicode letters, `\tag` a numbered row, `aligned` a table aligned by CSS,
and so on. A formula that cannot be converted is a warning, hence an error under `--strict`.

The mathematical font is the one inside the `ziamath` package, copied at build time; without that
package readers get whatever mathematical font their system has.
"""

import html
import importlib.util
import itertools
import logging
import pathlib
import re
import unicodedata
import xml.etree.ElementTree as ElementTree

from latex2mathml.converter import convert
from mkdocs.structure.files import File


log = logging.getLogger("mkdocs.hooks.mathml")

_FONT = "STIXTwoMath-Regular.ttf"

_SPAN = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DIV = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_TAG = re.compile(r"\\tag\{([^}]*)\}")

# What latex2mathml does not know, in terms of what it knows.
_SUBSTITUTIONS = (
    (re.compile(r"\\(begin|end)\{aligned\}"), r"\\\1{split}"),
    (re.compile(r"\\operatorname\*?\{arg\\,(max|min)\}"), r"\\operatorname{arg\1}"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"(\\[bB]igg?[lrm]?)\\\|"), "\\1\u2016"),
    # A braced single letter loses its upright style.
    (re.compile(r"\\mathrm\{(\w)\}"), r"{\\mathrm \1}"),
)

# mathvariant -> the word in the Unicode names of the letters.
_ALPHABETS = {
    "bold": "BOLD",
    "bold-italic": "BOLD ITALIC",
    "double-struck": "DOUBLE-STRUCK",
    "fraktur": "FRAKTUR",
    "monospace": "MONOSPACE",
    "sans-serif": "SANS-SERIF",
    "script": "SCRIPT",
}

# Functions stand apart from their neighbours unless those are operators or brackets:
# v log p, but exp(x).
_FUNCTIONS = frozenset("arg cos cov det diag div exp log sgn sin tanh tr var".split())
_LIMITS = frozenset("argmax argmin inf lim max min sup".split())
_SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")

_ACCENTS = {"^": "ˆ", "~": "˜", "¯": "¯", "˙": "˙", "―": "¯"}
_OPERATORS = {"~": "∼", "…": "…", "⌊": "⌊", "⌈": "⌈", "⌋": "⌋", "⌉": "⌉"}
# Operators that an infix reading would space out.
_TIGHT = frozenset("‖/|")


def _letter(character: str, alphabet: str) -> str:
    """The character of a mathematical alphabet: `_letter("N", "SCRIPT")` is 𝒩."""
    name = unicodedata.name(character, "").replace("LATIN ", "").replace("GREEK ", "")
    name = name.replace(" LETTER", "")
    # The letters that Unicode had before, such as ℒ and ℝ, are not called mathematical.
    for candidate in (f"MATHEMATICAL {alphabet} {name}", f"{alphabet} {name}"):
        try:
            return unicodedata.lookup(candidate)
        except KeyError:
            continue
    return character


def _mend_token(node: ElementTree.Element) -> None:
    text = node.text or ""
    variant = node.attrib.pop("mathvariant", None)
    if variant in _ALPHABETS:
        node.text = "".join(_letter(c, _ALPHABETS[variant]) for c in text)
    elif node.tag == "mi" and (variant == "normal" or (len(text) == 1 and "Α" <= text <= "Ω")):
        node.set("mathvariant", "normal")
    if node.tag == "mi" and text in _OPERATORS:
        node.tag, node.text = "mo", _OPERATORS[text]
        if text in "⌊⌈⌋⌉":
            node.attrib.update(form="prefix" if text in "⌊⌈" else "postfix", stretchy="false")
    elif node.tag == "mo" and text in _LIMITS:
        node.text = text.replace("arg", "arg\u2009")
        node.attrib.update(movablelimits="true", lspace="0em", rspace="0.167em")
    elif node.tag == "mo" and len(text) > 1 and text.isalpha():
        node.tag = "mi"
    elif node.tag == "mo" and text in _TIGHT and not node.get("form"):
        node.attrib.update(lspace="0em", rspace="0em")
    elif node.tag == "mspace" and node.get("width") == "negativethinmathspace":
        # Negative widths are invalid in MathML Core; negative margins are ordinary CSS.
        node.attrib = {"style": "margin-left:-0.167em"}


def _mend_structure(node: ElementTree.Element) -> None:
    if node.tag == "mover" and node[1].tag == "mo" and node[1].text in _ACCENTS:
        base, mark = node
        wide = mark.text in ("¯", "―") and len("".join(base.itertext())) > 1
        mark.text = _ACCENTS[str(mark.text)]
        mark.attrib = {"stretchy": "true" if wide else "false"}
        node.set("accent", "true")
    elif node.tag == "msub" and node[0].tag == "mo" and node[0].get("movablelimits"):
        node.tag = "munder"
    elif node.tag == "mtable":
        # MathML Core leaves alignment to style sheets.
        aligned = node.get("displaystyle") == "true"
        node.attrib = (
            {"class": "aligned", "displaystyle": "true"} if aligned else {"class": "matrix"}
        )
    elif node.tag == "mtd" and "columnalign" in node.attrib:
        node.set("class", node.attrib.pop("columnalign"))


def _end(node: ElementTree.Element, position: int) -> ElementTree.Element:
    """The token at which a formula begins (`position` 0) or ends (−1)."""
    while len(node) and node.tag != "mtable":
        node = node[0 if node.tag in _SCRIPTS or node.tag == "mfrac" else position]
    return node


def _is_function(node: ElementTree.Element) -> bool:
    base = node[0] if node.tag in _SCRIPTS else node
    return base.tag == "mi" and base.text in _FUNCTIONS


def _mend_signs(row: ElementTree.Element) -> None:
    """A sign after an operator belongs to what follows: s = −t, [−1, 1]."""
    for before, sign in itertools.pairwise(row):
        last = _end(before, -1)
        closing = last.get("form") == "postfix" or last.text in (")", "]", "}", "|", "‖", "!")
        begins = (last.tag == "mo" and not closing) or last.get("width") in ("1em", "2em")
        if sign.tag == "mo" and sign.text in ("−", "+", "±") and begins:
            sign.set("form", "prefix")


def _mend_spacing(row: ElementTree.Element) -> None:
    for index in reversed(range(1, len(row))):
        before, after = row[index - 1], row[index]
        if "mspace" in (before.tag, after.tag) or not (_is_function(before) or _is_function(after)):
            continue
        last, first = _end(before, -1), _end(after, 0)
        separated = last.tag == "mo" and last.text not in ("∇", "∂", ")", "]", "}", "|", "‖")
        bracket = first.tag == "mo" and first.text not in ("∇", "∂")
        if not separated and not bracket:
            row.insert(index, ElementTree.Element("mspace", width="0.167em"))


def _mend(node: ElementTree.Element) -> None:
    for child in node:
        _mend(child)
    _mend_structure(node)
    _mend_token(node)
    if node.tag not in _SCRIPTS and node.tag not in ("mfrac", "mroot"):
        _mend_spacing(node)
        _mend_signs(node)


def to_mathml(latex: str, *, block: bool) -> str:
    """One formula as a `<math>` element, followed by its number where it has a `\\tag`."""
    tags = _TAG.findall(latex)
    source = _TAG.sub("", latex).strip()
    for pattern, replacement in _SUBSTITUTIONS:
        source = pattern.sub(replacement, source)
    text = convert(source, display="block" if block else "inline")
    tree = ElementTree.fromstring(re.sub(r'\sxmlns="[^"]*"', "", text, count=1))
    unknown = [c.text for c in tree.iter() if c.text and c.text.startswith("\\")]
    if unknown:
        raise ValueError(f"unknown commands {', '.join(unknown)}")
    _mend(tree)
    tree.set("alttext", " ".join(latex.split()))
    mathml = ElementTree.tostring(tree, encoding="unicode")
    if not block:
        return mathml
    number = f'<span class="number">({html.escape(tags[0])})</span>' if tags else ""
    return f'<div class="equation">{mathml}{number}</div>'


def _replace(match: re.Match, page, *, block: bool) -> str:
    latex = html.unescape(match.group(1))
    try:
        return to_mathml(latex, block=block)
    except Exception as error:
        log.warning("%s: formula %r: %s: %s", page.file.src_uri, latex, type(error).__name__, error)
        return match.group(0)


def on_page_content(content, page, config, files):
    """A MkDocs event: formulas of the page's HTML, docstrings included."""
    content = _SPAN.sub(lambda match: _replace(match, page, block=False), content)
    return _DIV.sub(lambda match: _replace(match, page, block=True), content)


def on_files(files, config):
    """A MkDocs event: adds the mathematical font to the site."""
    spec = importlib.util.find_spec("ziamath")
    if spec is None or spec.origin is None:
        log.info("ziamath is not installed: readers get their system's mathematical font")
        return files
    font = pathlib.Path(spec.origin).parent / "fonts" / _FONT
    files.append(File.generated(config, f"assets/{_FONT}", abs_src_path=str(font)))
    return files
