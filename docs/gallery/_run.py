"""Runs pages of the gallery and keeps what they print and draw: `python docs/gallery/_run.py NAME`.

A page is a script in the percent format (`# %%`), which editors and Jupyter open as a notebook. Its
output is committed beside the site's other pictures, so that the site is built in seconds:
`assets/gallery/NAME.json` holds the text of every cell and the names of its figures, each drawn for
a light and for a dark page. `docs/hooks/gallery.py` puts page and output together.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import time

import jupytext
import matplotlib
import matplotlib.pyplot as plt


HERE = pathlib.Path(__file__).parent
# At the end: examples have modules of the same names as some benchmarks.
sys.path.append(str(HERE.parent.parent / "benchmarks"))

from _figure import save_twins, STYLE  # noqa: E402


ASSETS = HERE.parent / "assets" / "gallery"


def pages() -> list[pathlib.Path]:
    """The scripts of the gallery."""
    return sorted(path for path in HERE.glob("*.py") if not path.name.startswith("_"))


def cells(path: pathlib.Path) -> list[tuple[str, str]]:
    """The kind (`markdown` or `code`) and the text of every cell."""
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells if cell.source]


def digest(path: pathlib.Path) -> str:
    """A short hash of the code, whatever its format: the outputs are those of this code."""
    code = "\n".join(text for kind, text in cells(path) if kind == "code")
    return hashlib.sha256(re.sub(r"[\s,]", "", code).encode()).hexdigest()[:16]


def _save_figures(name: str, number: int) -> list[str]:
    names = []
    for index, figure in enumerate(map(plt.figure, plt.get_fignums())):
        stem = f"{name}-{number}" + (f"-{index}" if index else "")
        save_twins(figure, ASSETS / stem)
        names.append(stem)
    plt.close("all")
    return names


def run(path: pathlib.Path) -> None:
    """Runs one page and writes its outputs.

    **Raises:** whatever a cell raises.
    """
    matplotlib.use("Agg")
    ASSETS.mkdir(parents=True, exist_ok=True)
    for old in ASSETS.glob(f"{path.stem}-*.png"):
        old.unlink()
    names, outputs = {"__name__": "__main__"}, []
    began, used = time.perf_counter(), time.process_time()
    with plt.rc_context(STYLE):
        for number, (kind, text) in enumerate(cells(path)):
            if kind != "code":
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, f"{path.name}, cell {number}", "exec"), names)
            figures = _save_figures(path.stem, number)
            outputs.append({"text": printed.getvalue(), "figures": figures})
    # On a busy machine the processor's time says better how long an idle one takes.
    seconds = min(time.perf_counter() - began, time.process_time() - used)
    record = {
        "code": digest(path),
        "seconds": round(seconds),
        "outputs": outputs,
    }
    (ASSETS / f"{path.stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.stem}: {record['seconds']} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pages, such as two_moons; all by default")
    names = parser.parse_args().names
    known = {path.stem: path for path in pages()}
    if unknown := set(names) - set(known):
        parser.error(f"no such pages: {sorted(unknown)}; there are {sorted(known)}")
    names = names or [*known]
    if len(names) == 1:
        return run(known[names[0]])
    for name in names:
        # A process each: a page may say how many devices there are before JAX is imported.
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
