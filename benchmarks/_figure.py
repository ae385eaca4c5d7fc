"""How every figure of the documentation looks: its colours, its type, and its twin for the dark.

The gallery's pages and `figures.py` both draw with this.
"""

import pathlib
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text


# Okabe and Ito's colours, which the colour-blind can tell apart; the eighth, black, is the text's.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
BLUE, AMBER, GREEN, PINK, SKY, RED, YELLOW = PALETTE
# The colour of the text on a light page and on a dark one; and of what should stay behind.
LIGHT, DARK = "#202124", "#dadce3"
FAINT, FAINT_DARK = "#c9cacd", "#4a4e5a"
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.dpi": 110,
    "savefig.transparent": True,
    "svg.hashsalt": "eqdiff",  # The same numbers give the same file.
    **{
        f"{what}.{part}": LIGHT
        for what, part in (
            *(("axes", "edgecolor"), ("axes", "labelcolor"), ("axes", "titlecolor")),
            *(("text", "color"), ("xtick", "color"), ("ytick", "color")),
        )
    },
}


def _mixed(colour: str, other: str) -> tuple[float, ...]:
    """A colour that can be read as text: nearer to the text's."""
    return to_rgba(tuple(0.6 * np.array(to_rgb(colour)) + 0.4 * np.array(to_rgb(other))))


_TWINS = {
    to_rgba(LIGHT): to_rgba(DARK),
    to_rgba(FAINT): to_rgba(FAINT_DARK),
    **{_mixed(colour, LIGHT): _mixed(colour, DARK) for colour in PALETTE},
}


def label(axes: Axes, text: str, place: tuple[float, float], colour: str, **keywords) -> Text:
    """A curve's name beside the curve, in its colour."""
    colours = {"color": colour if colour in (LIGHT, FAINT) else _mixed(colour, LIGHT)}
    return axes.annotate(text, place, va="center", **colours, **keywords)


def _darken(figure: Figure) -> None:
    """Gives what has the colour of the text the dark page's instead, and so for its tints."""
    for artist in figure.findobj():
        for kind in ("color", "edgecolor", "facecolor"):
            get = getattr(artist, f"get_{kind}", None)
            colour: Any = None if get is None else get()
            # Collections have a row of colours.
            colour = colour[0] if isinstance(colour, np.ndarray) and len(colour) == 1 else colour
            if not is_color_like(colour):
                continue
            if (dark := _TWINS.get(to_rgba(colour))) is not None:
                getattr(artist, f"set_{kind}")(dark)
    for axes in figure.axes:
        axes.tick_params(colors=DARK, which="both")


def save_twins(figure: Figure, stem: pathlib.Path, suffix: str = ".png") -> None:
    """Writes `STEM-light` and `STEM-dark`, for a light and for a dark page."""
    # An SVG would otherwise know when it was written.
    keywords: dict[str, Any] = {"metadata": {"Date": None}} if suffix == ".svg" else {}
    figure.savefig(f"{stem}-light{suffix}", **keywords)
    _darken(figure)
    figure.savefig(f"{stem}-dark{suffix}", **keywords)
