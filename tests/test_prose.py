"""The English of the documentation, docstrings, comments and messages.

Spelling is codespell's. Here are turns that are never right, or never British, outside code and the
titles of papers.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest


ROOT = pathlib.Path(__file__).parent.parent

# What is wrong, and what to write.
PATTERNS = {
    r"(?<!there )\b(is|are|was|were) no (?!(?:more|less|worse|different|larger)\b|"
    r"(bett|fast|furth|great|high|long|low|new|old|short|slow|small|wid)er\b)\w+": "not a …",
    r"\bfor ever\b": "forever, indefinitely",
    r"\b(is|are|was) told\b": "gets, receives, is conditioned on",
    r"\bit is none\b": "there is none",
    r"\b(allows?|enables?|permits?) to \w+": "allows you to …, makes … possible",
    r"\bhow (it|this|that|they) looks? like\b": "what … looks like",
    r"\bsame like\b": "the same as",
    r"\binformations\b|\badvices\b|\bsoftwares\b": "uncountable",
    r"\b(?-i:(the|an?|of|to|in|is|and|it|for|on|with|by|or|as|[a-z]{5,}) \1)\b": "one word twice",
    r"\b[a-z]{3,}(?:iz(?:e|ed|es|er|ers|ing|ation|ations))\b(?<!size)(?<!sized)(?<!sizes)"
    r"(?<!resize)(?<!seize)(?<!prize)(?<!resized)(?<!prized)(?<!sizing)(?<!resizing)": "-ise",
    r"\b(behavior|neighbor|favor|honor|analyze[rd]?|catalog|color|center|gray|modeling)"
    r"(s|ed|ing|hood)?\b": "British spelling",
}

NOT_PROSE = re.compile(
    r"```.*?```|``.*?``|`[^`]*`|\$[^$]*\$|<[^>]*>|\]\([^)]*\)|\]\[[^\]]*\]|https?://\S+"
    r"|(?<![*\w])\*(?![*\s])[^*]+\*(?!\*)|\b[\w-]*[_.:/=][\w./:=-]*\w",
    re.DOTALL,
)


def faults(text: str) -> list[str]:
    """What is wrong with a text of Markdown."""
    text = NOT_PROSE.sub("·", text)
    text = re.sub(r"\s*\n\s*#?\s*(?=\S)", " ", text)
    return [
        f"{found.group()!r}: {better}"
        for pattern, better in PATTERNS.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


def written(source: str) -> list[str]:
    """What people read of a Python file: its sentences, and comments."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r" .*[.:;,]", node.value, re.DOTALL)
    ]
    comments, last = [], -2
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("# ")
        if token.start[0] == last + 1:
            comments[-1] += f" {text}"
        else:
            comments.append(text)
        last = token.start[0]
    return strings + comments


TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CODE = [p for room in ("eqdiff", "examples", "docs") for p in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize(
    "text",
    [
        *("The loss is no number.", "It waits for\never.", "The network is told the time."),
        *("It allows to sample.", "of the the data", "A learned parameterization."),
        *("the behavior", "the colors of an image", "It optimizes the bound."),
    ],
)
def test_bad_english_is_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        *("There is no batch axis.", "It is no longer ours.", "`optimizer.center` is a field."),
        *("The size of a prize.", "*Flow Matching for Generative Modeling*", "resized images"),
    ],
)
def test_good_english_is_left_alone(text):
    assert not faults(text)


def test_the_documentation_is_plain_english():
    found = {str(p.relative_to(ROOT)): faults(p.read_text()) for p in TEXTS}
    assert {path: bad for path, bad in found.items() if bad} == {}


def test_docstrings_comments_and_messages_are_plain_english():
    found = {}
    for path in CODE:
        bad = [fault for text in written(path.read_text()) for fault in faults(text)]
        if bad:
            found[str(path.relative_to(ROOT))] = bad
    assert found == {}
