"""How the documentation looks: figures of light and dark pages, and names at the end of a line."""

import importlib.util
import pathlib
import re
import shutil
import sys

import pytest


pytest.importorskip("matplotlib")

ROOT = pathlib.Path(__file__).parent.parent
# At the end: examples have modules of the same names as some benchmarks.
sys.path.append(str(ROOT / "benchmarks"))

import _figure
import figures
import matplotlib
import matplotlib.pyplot as plt
import numpy as np


def test_text_becomes_light_on_a_dark_page(tmp_path):
    with plt.rc_context(_figure.STYLE):
        figure, axes = plt.subplots()
        axes.set_title("title")
        (line,) = axes.plot([0, 1])
        points = axes.scatter([0], [1], color=_figure.FAINT)
        name = _figure.label(axes, "name", (0, 1), _figure.BLUE)
    before, dim = line.get_color(), sum(_figure.to_rgb(name.get_color()))
    _figure.save_twins(figure, tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x-light.png", "x-dark.png"}
    assert _figure.to_rgba(axes.title.get_color()) == _figure.to_rgba(_figure.DARK)
    assert tuple(points.get_facecolor()[0]) == _figure.to_rgba(_figure.FAINT_DARK)
    assert sum(_figure.to_rgb(name.get_color())) > dim
    assert line.get_color() == before
    plt.close("all")


def _parts(svg: str) -> tuple[list[str], np.ndarray]:
    """What an SVG says and its numbers; names that are hashes of the numbers left out."""
    svg = re.sub(r"\b[mp][0-9a-f]{10}\b", "", svg)
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.split(number, svg), np.array([float(n) for n in re.findall(number, svg)])


@pytest.mark.parametrize("name", figures.FIGURES)
def test_what_is_committed_is_what_is_drawn(name, tmp_path):
    draw, folder = figures.FIGURES[name]
    kept = figures.ASSETS / folder
    for path in (*kept.glob("*.json"), *kept.glob("*.png")):
        shutil.copy(path, tmp_path)
    draw(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn and drawn <= {path.name for path in kept.glob("*.svg")}
    for path in tmp_path.glob("*.svg"):
        new, old = path.read_text(), (kept / path.name).read_text()
        # Another version of Matplotlib may draw the same figure otherwise.
        if f"Matplotlib v{matplotlib.__version__}," in old:
            (words, numbers), (kept_words, kept_numbers) = _parts(new), _parts(old)
            assert words == kept_words
            np.testing.assert_allclose(numbers, kept_numbers, rtol=1e-4, atol=0.01)
    for dark in tmp_path.glob("*-dark.svg"):
        light = dark.with_name(dark.name.replace("-dark", "-light"))
        assert _figure.LIGHT in light.read_text() and _figure.LIGHT not in dark.read_text()


def test_no_figure_is_left_over():
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for path in figures.ASSETS.glob("*/*.svg"):
        assert str(path.relative_to(figures.ASSETS)) in pages, path


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<code>--process</code>", '<code class="whole">--process</code>'),
        ("<code>eqdiff.DDIM</code>", '<code class="whole">eqdiff.<wbr>DDIM</code>'),
        ("<code>a --b</code>", '<code>a <span class="whole">--b</span></code>'),
        ("<code>a - b</code>", "<code>a - b</code>"),
        (
            "<code>eqdiff.discretised_gaussian_log_likelihood_exact</code>",
            "<code>eqdiff.<wbr>discretised_<wbr>gaussian_<wbr>log_<wbr>likelihood_<wbr>"
            "exact</code>",
        ),
    ],
)
def test_where_names_are_broken(html, shown):
    spec = importlib.util.spec_from_file_location("names", ROOT / "docs" / "hooks" / "names.py")
    assert spec is not None and spec.loader is not None
    names = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(names)
    assert names.on_page_content(html, None, None, None) == shown
