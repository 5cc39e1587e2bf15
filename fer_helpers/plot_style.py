"""The one style of all figures: colors, fonts, and a frame that leaves nothing open."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

# seaborn's color-blind palette, its two palest colors last: they are hard to see as thin lines.
PALETTE = tuple(sns.color_palette("colorblind").as_hex()[k] for k in (0, 1, 2, 3, 4, 5, 9, 7, 6, 8))
BLUE, ORANGE, GREEN, RED, GREY = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3], "#6b6b6b"
PALE = "#b8c9d9"
WIDTH = 9.5  # inches, about the width of a notebook
STYLE = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 9.5,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    # A class may be called "$$$" in somebody's folder; it is a name, not a formula.
    "text.parse_math": False,
}


class NotebookFigure(Figure):
    """A figure that notebooks show as a small PNG, whatever their inline settings are."""

    def _ipython_display_(self) -> None:
        # Anything less gives way to the PNG that matplotlib's inline backend registers, which is
        # two to three times the size.
        from IPython.display import display

        picture = base64.b64encode(png_bytes(self)).decode("ascii")
        display({"image/png": picture, "text/plain": repr(self)}, raw=True)


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG with a palette of 256 colors, about a third of the usual size."""
    full, small = io.BytesIO(), io.BytesIO()
    with plt.rc_context({"savefig.bbox": None}):
        figure.savefig(full, format="png", dpi=figure.dpi, facecolor="white")
    picture = Image.open(full).convert("RGB")
    picture = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def in_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function that returns a figure draw it in the house style and close it in pyplot."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        try:
            with plt.style.context(["default", STYLE]):
                figure = draw(*args, **kwargs)
                _freeze(figure)
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
        return figure

    return drawn


def _freeze(figure: Figure) -> None:
    # Ticks take their style when they are first drawn, so draw them while it holds. That also lays
    # the figure out; doing it once is enough, and it is the slowest part of saving a figure.
    figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    if engine is not None:
        for legend in figure.legends:  # room was made for them above the note; now go there
            legend.set_bbox_to_anchor(engine.get()["rect"], figure.transFigure)
        figure.set_layout_engine("none")


def new_figure(
    height: float, title: str, note: str, *, width: float = WIDTH, columns: int = 1
) -> tuple[Figure, np.ndarray]:
    """Return a figure (inches) with its axes, title and, in the lower right corner, its note."""
    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), squeeze=False, FigureClass=NotebookFigure
    )
    for ax in axes.flat:  # kept on the axes: ticks are placed again when a figure is saved
        ax.tick_params(labelsize=STYLE["font.size"])
    if title:
        figure.suptitle(clean(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold")
    if note:
        strip = 0.2 / height
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        write_note(figure, note)
    return figure, axes


def write_note(figure: Figure, note: str) -> None:
    """Write a note (where the data comes from) into the lower right corner."""
    down = 0.04 / figure.get_figheight()
    figure.text(0.995, down, clean(note, 150), ha="right", fontsize=8.5, style="italic", color=GREY)


def legend_below(figure: Figure, handles: Sequence, names: Sequence[str], columns: int = 1) -> None:
    """Put one legend for all axes below them, and above the note."""
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def clean(text: str, limit: int = 16) -> str:
    """Return a name fit for a figure: one line, at most `limit` characters, never hidden."""
    text = " ".join(str(text).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    # matplotlib leaves labels that start with an underscore out of the legend.
    return "\u200b" + text if text.startswith("_") else text


def savefig(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write `name`.png and `name`.svg into `folder` (made if missing) and return both paths.

    The same figure gives the same bytes: no date is written and the SVG's ids come from a fixed
    salt.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    png.write_bytes(png_bytes(figure))
    with plt.rc_context({"svg.hashsalt": "fer", "savefig.bbox": None}):
        figure.savefig(svg, facecolor="white", metadata={"Date": None, "Creator": None})
    return png, svg


def as_percent(axis) -> None:
    """Label an axis that runs from 0 to 1 in percent, with decimals where the ticks have some."""
    # Rounded, because a tick at 0 may be 1e-17; plus 0, because it may be -0.
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6) + 0:g} %"))


def as_counts(axis) -> None:
    """Label an axis with whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of the x axis, slanted if the names are long."""
    long = max(len(clean(name)) for name in names) > 9 or len(names) > 9
    turn = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    ax.set_xticks(range(len(names)), [clean(name) for name in names], **turn)
    ax.tick_params(axis="x", length=0)


def check_rows(what: str, values: np.ndarray, names: Sequence[str]) -> None:
    """Raise ValueError unless there is one value per name (or per face)."""
    if len(values) != len(names):
        raise ValueError(f"{what} has {len(values)} entries for {len(names)} names: pass one each.")


def draw_matrix(
    ax: Axes,
    values: np.ndarray,
    names: Sequence[str],
    *,
    cmap: str,
    fmt: str = "",
    texts: np.ndarray | None = None,
    low: float | None = None,
    high: float | None = None,
    limit: int = 12,
    truth: str = "true class",
    prediction: str = "predicted class",
) -> None:
    """Draw a square heat map with its numbers, or with `texts`; NaN stays white with a dash."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        low, high = 0, 1
    width, height = ax.figure.get_size_inches()
    cell = 72 * min(width / len(ax.figure.axes), height) / len(names)  # points, at most
    small = {"fontsize": min(8 if len(names) <= 8 else 6.5, cell / 4.5)}
    sns.heatmap(
        np.where(known, values, 0), mask=~known, ax=ax, cmap=cmap, vmin=low, vmax=high,
        annot=True if texts is None else texts, fmt=fmt, cbar=False, square=True,
        annot_kws=small, linewidths=0.6, linecolor="white",
    )  # fmt: skip
    for i, j in np.argwhere(~known):
        ax.text(j + 0.5, i + 0.5, "–", ha="center", va="center", color=GREY, fontsize=8)
    spots = np.arange(len(names)) + 0.5
    shown = [clean(name, limit) for name in names]
    ax.set_xticks(spots, shown, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(spots, shown, rotation=0)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set_xlabel(prediction)
    ax.set_ylabel(truth)
