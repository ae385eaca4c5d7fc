"""Makes a page and a notebook of every script of the gallery, with its committed output.

See `docs/gallery/_run.py`, which runs them.
"""

import importlib.util
import json
import pathlib

import jupytext
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File


_FIGURE = "![{alt}](../assets/gallery/{name}-{theme}.png#only-{theme}){wide}"
# Pixels: a phone shows a wider figure in part, in a size that can be read.
_WIDE = 900


def _runner(root: pathlib.Path):
    path = root / "docs" / "gallery" / "_run.py"
    spec = importlib.util.spec_from_file_location("gallery_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _time(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"


def _head(name: str, seconds: int) -> str:
    return (
        f'!!! example "{_time(seconds)} on two CPU cores"\n\n'
        f"    This page is a script, [`{name}.py`]({name}.py), and "
        f"a notebook, [`{name}.ipynb`]({name}.ipynb).\n"
    )


def page(path: pathlib.Path, runner) -> str:
    """The Markdown of a page: its cells, and after each the output."""
    try:
        record = json.loads((runner.ASSETS / f"{path.stem}.json").read_text())
    except FileNotFoundError:
        raise PluginError(f"Run `python docs/gallery/_run.py {path.stem}` first.") from None
    outputs, parts = iter(record["outputs"]), []
    for kind, text in runner.cells(path):
        if kind == "markdown":
            parts.append(text)
            if len(parts) == 1:
                parts.append(_head(path.stem, record["seconds"]))
            continue
        output = next(outputs)
        parts.append(f"```python\n{text}\n```")
        if output["text"]:
            parts.append(f'```{{.text .output title="Output"}}\n{output["text"].rstrip()}\n```')
        for figure in output["figures"]:
            alt = path.stem.replace("_", " ")
            # A PNG begins with its size.
            width = int.from_bytes((runner.ASSETS / f"{figure}-light.png").read_bytes()[16:20])
            wide = "{ .wide }" if width > _WIDE else ""
            facts = {"alt": alt, "name": figure, "wide": wide}
            themes = ("light", "dark")
            parts.append("\n".join(_FIGURE.format(theme=theme, **facts) for theme in themes))
    return "\n\n".join(parts) + "\n"


def on_files(files, config):
    """A MkDocs event: the files of the site are known."""
    root = pathlib.Path(config.config_file_path).parent
    runner = _runner(root)
    for path in runner.pages():
        name = f"gallery/{path.stem}"
        notebook = jupytext.writes(jupytext.read(path), fmt="ipynb")
        files.append(File.generated(config, f"{name}.md", content=page(path, runner)))
        files.append(File.generated(config, f"{name}.ipynb", content=notebook))
    return files
