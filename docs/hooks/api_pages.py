"""Lets an API page be prose and one line for each module, `::: eqdiff._process.vp`.

A module becomes its theory, folded and titled by the first sentence of its docstring, and then the
public names that it defines, in their order there. A name that an API page lists by itself,
`::: eqdiff.DDIM`, stands where that page has it. Each becomes a mkdocstrings block whose heading is
one level below the heading it stands under. A line that is indented, or has options with a
`heading_level`, is left as it is.
"""

import ast
import functools as ft
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


@ft.cache
def _exports(package: str, root: pathlib.Path) -> dict[str, str]:
    """Public name -> the module that a package takes it from."""
    body = ast.parse((root.joinpath(*package.split("."), "__init__.py")).read_text()).body
    return {
        alias.asname or alias.name: f"{package}.{node.module}"
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


@ft.cache
def _listed(root: pathlib.Path) -> frozenset[str]:
    """The names that API pages list by themselves."""
    pages = (root / "docs" / "api").glob("*.md")
    lines = (line for page in pages for line in page.read_text(encoding="utf-8").splitlines())
    return frozenset(match[1] for match in map(_DIRECTIVE.match, lines) if match)


def public_names(module: str, path: pathlib.Path, root: pathlib.Path) -> list[str]:
    """The public names that a module defines, as users write them, but those listed on a page."""
    parts = module.split(".")
    first_private = next((i for i, part in enumerate(parts) if part.startswith("_")), len(parts))
    packages = [".".join(parts[:i]) for i in range(first_private, 0, -1)]
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for package in packages:
            source = _exports(package, root).get(node.name, "")
            if source and f"{module}.".startswith(f"{source}."):
                found.append(f"{package}.{node.name}")
                break
    return [name for name in found if name not in _listed(root)]


def _module(name: str, path: pathlib.Path, level: int, root: pathlib.Path) -> list[str]:
    title = _title(path)
    if not title:
        log.warning("%s has no docstring to show as theory", name)
    names = public_names(name, path, root) if "._" in name else []
    blocks = (line for public in names for line in _block(public, [], level, root))
    return [*_THEORY.format(title=title, name=name).splitlines(), *blocks]


def _block(name: str, options: list[str], level: int, root: pathlib.Path) -> list[str]:
    path = _source(name, root)
    if path is not None:
        return _module(name, path, level, root)
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


def on_pre_build(config):
    """A MkDocs event: another build of `mkdocs serve` may find other names."""
    _exports.cache_clear()
    _listed.cache_clear()


def on_page_markdown(markdown, page, config, files):
    """A MkDocs event: a page's Markdown, before it is rendered."""
    return expand(markdown, pathlib.Path(config.config_file_path).parent)
