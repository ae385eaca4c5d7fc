"""Lets an API page be a list of `::: eqdiff.Name`.

Every such line becomes a mkdocstrings block whose heading is one level below the heading it stands
under. A module, `::: eqdiff._x`, becomes the folded theory that its docstring is, titled by its
first sentence. A line that is indented, or has options with a `heading_level`, is left as it is.
"""

import ast
import logging
import pathlib
import re


log = logging.getLogger("mkdocs.hooks.api_pages")

_DIRECTIVE = re.compile(r"^::: +([\w.]+)\s*$")
_HEADING = re.compile(r"^(#+) ")

_THEORY = """\
??? abstract "Theory: {title}"

    ::: {name}
        options:
          members: false
          show_root_heading: false
          show_root_toc_entry: false
"""


def _source(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The file of a module, or nothing where the name is that of a class or function."""
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def _title(path: pathlib.Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split()).replace('"', "'")
    # A formula would be plain text there.
    return re.split(r"[.:](?:\s|$)| \$", first)[0]


def _block(name: str, options: list[str], level: int, root: pathlib.Path) -> list[str]:
    path = _source(name, root)
    if path is not None:
        title = _title(path)
        if not title:
            log.warning("%s has no docstring to show as theory", name)
        return _THEORY.format(title=title, name=name).splitlines()
    if any("heading_level" in line for line in options):
        return [f"::: {name}", *options]
    if not options:
        return [f"::: {name}", "    options:", f"      heading_level: {level}"]
    # The level is one option more, indented like the others.
    indent = re.match(r" *", options[1] if len(options) > 1 else "      ").group()
    return [f"::: {name}", options[0], f"{indent}heading_level: {level}", *options[1:]]


def expand(markdown: str, root: pathlib.Path) -> str:
    """The Markdown of a page with every `::: name` written out."""
    lines, out, level, fenced = markdown.split("\n"), [], 1, False
    while lines:
        line = lines.pop(0)
        fenced ^= line.lstrip().startswith("```")
        heading, directive = _HEADING.match(line), _DIRECTIVE.match(line)
        if fenced or not directive:
            level = len(heading.group(1)) if heading and not fenced else level
            out.append(line)
            continue
        options = []
        while lines and lines[0].startswith("    "):
            options.append(lines.pop(0))
        out += _block(directive.group(1), options, level + 1, root)
    return "\n".join(out)


def on_page_markdown(markdown, page, config, files):
    """A MkDocs event: a page's Markdown, before it is rendered."""
    return expand(markdown, pathlib.Path(config.config_file_path).parent)
