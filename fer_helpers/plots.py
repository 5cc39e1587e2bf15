# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Plots: the figures of the workflow, in one style
#
# Every function takes numbers, names and pixel arrays and returns one matplotlib `Figure`. Nothing
# is shown and nothing stays open, so a notebook displays the returned figure once and a script
# saves it. The style is set here and nowhere else: opaque white (readable in dark notebooks too),
# colors that color-blind readers can tell apart, one hue per heat map.

# %%
"""Draw data, training and per-class results: numbers in, matplotlib figures out."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

PALETTE = tuple(sns.color_palette("colorblind").as_hex())
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

# %% [markdown]
# ## One style, nothing left open


# %%
def in_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function that returns a figure draw it in the house style and close it in pyplot."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        try:
            with plt.style.context(["default", STYLE]):
                figure = draw(*args, **kwargs)
                figure.draw_without_rendering()  # ticks take their style when they are first drawn
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
        return figure

    return drawn


# %%
def new_figure(
    height: float, title: str, note: str, *, width: float = WIDTH, rows: int = 1, columns: int = 1
) -> tuple[Figure, np.ndarray]:
    """Return a figure (inches) with its axes, title and, in the lower right corner, its note."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    if title:
        figure.suptitle(clean(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold")
    if note:
        strip = 0.2 / height
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        _write_note(figure, note)
    return figure, axes


def _write_note(figure: Figure, note: str) -> None:
    down = 0.04 / figure.get_figheight()
    figure.text(0.995, down, clean(note, 150), ha="right", fontsize=8.5, style="italic", color=GREY)


# %%
def clean(text: str, limit: int = 16) -> str:
    """Return a name fit for a figure: one line, at most `limit` characters, never hidden."""
    text = " ".join(str(text).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    # matplotlib leaves labels that start with an underscore out of the legend.
    return "\u200b" + text if text.startswith("_") else text


# %%
def savefig(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write `name`.png and `name`.svg into `folder` (made if missing) and return both paths.

    The same figure gives the same bytes: no date is written and the SVG's ids come from a fixed
    salt.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with plt.rc_context({"svg.hashsalt": "fer", "savefig.bbox": None}):
        figure.savefig(png, facecolor="white", metadata={"Software": None})
        figure.savefig(svg, facecolor="white", metadata={"Date": None, "Creator": None})
    return png, svg


# %%
def as_percent(axis) -> None:
    """Label an axis that runs from 0 to 1 in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _name_ticks(ax: Axes, names: Sequence[str]) -> None:
    long = max(len(clean(name)) for name in names) > 9 or len(names) > 9
    turn = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    ax.set_xticks(range(len(names)), [clean(name) for name in names], **turn)
    ax.tick_params(axis="x", length=0)


def _check_rows(what: str, values: np.ndarray, names: Sequence[str]) -> None:
    if len(values) != len(names):
        raise ValueError(f"{what} has {len(values)} entries for {len(names)} names: pass one each.")


# %% [markdown]
# ## Data


# %%
@in_style
def plot_class_counts(
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    *,
    title: str = "Images per class",
    note: str = "",
) -> Figure:
    """Draw images per class as bars, side by side for each split: counts {split: (K,)}."""
    for split, values in counts.items():
        _check_rows(f"counts[{split!r}]", values, class_names)
    figure, axes = new_figure(3.4, title, note)
    ax = axes[0, 0]
    spots, size = np.arange(len(class_names)), 0.82 / max(len(counts), 1)
    handles = []
    for k, values in enumerate(counts.values()):
        at = spots + (k - (len(counts) - 1) / 2) * size
        handles.append(ax.bar(at, values, size * 0.94, color=PALETTE[k % len(PALETTE)]))
        if len(counts) * len(class_names) <= 27:
            ax.bar_label(handles[-1], fmt="{:,.0f}", fontsize=7.5, padding=1)
    _name_ticks(ax, class_names)
    ax.set_ylabel("images")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.margins(y=0.12)
    if len(counts) > 1:
        labels = [f"{clean(name, 24)} ({int(np.sum(v)):,})" for name, v in counts.items()]
        figure.legend(handles, labels, loc="outside upper right", ncols=len(counts))
    return figure


# %%
def to_rgb(images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return faces, uint8 (H, W) or (H, W, C) with C 1 or 3, as a list of uint8 (H, W, 3)."""
    faces = []
    for image in images:
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(
                f"a face is {image.dtype} of shape {image.shape}, but uint8 (H, W, 1 or 3) is "
                "needed: undo the normalization first."
            )
        faces.append(np.broadcast_to(image, (*image.shape[:2], 3)))
    return faces


# %% [markdown]
# All faces of a gallery are pasted onto one canvas, drawn pixel for pixel: a single picture draws
# much faster than fifty pairs of axes, and nothing can overlap. 32 shades per channel are plenty
# for a preview and halve the size of a notebook that carries the figure.


# %%
def draw_gallery(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    row_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    cell: int = 110,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw rows of faces (uint8, rows may differ in length) with a name per row and captions below.

    `cell` is the greatest width of a face in pixels; it shrinks when the figure would become wider
    than a notebook. Small faces are enlarged by whole factors, so their pixels stay visible.
    """
    faces = [to_rgb(row) for row in rows]
    if not any(faces):
        raise ValueError("there is no face to draw, so pass at least one.")
    if row_labels:
        _check_rows("row_labels", row_labels, rows)
    columns = max(len(row) for row in faces)
    labels = [clean(label) for label in row_labels]
    left = 14 + 8 * max((len(label) for label in labels), default=0)
    side = min(cell, (round(100 * WIDTH) - left - 10) // columns - 6)
    sides = {max(face.shape[:2]) for row in faces for face in row}
    doubled = len(sides) == 1 and max(sides) <= side
    if doubled:
        side = side // max(sides) * max(sides)
    texts = [[_wrap(caption, side // 6) for caption in row] for row in captions]
    lines = max((text.count("\n") + 1 for row in texts for text in row), default=0)
    pitch = side + 6
    row_height = pitch + (14 * lines + 4 if lines else 0)
    canvas = np.full((len(faces) * row_height - 6, columns * pitch - 6, 3), 255, dtype=np.uint8)
    top, bottom = (30 if title else 6), (22 if note else 6)
    height = top + canvas.shape[0] + bottom
    width = max(left + canvas.shape[1] + 10, 9 * len(title) + 20, 6 * len(note) + 20)
    figure = plt.figure(figsize=(width / 100, height / 100), layout="none")
    if title:
        figure.text(
            8 / width, 1 - 6 / height, clean(title, 100), va="top", fontsize=12, fontweight="bold"
        )
    _write_note(figure, note)
    ax = figure.add_axes(
        (left / width, bottom / height, canvas.shape[1] / width, canvas.shape[0] / height)
    )
    for i, row in enumerate(faces):
        for j, face in enumerate(row):
            y, x = i * row_height, j * pitch
            canvas[y : y + side, x : x + side] = _resized(face, side, doubled) // 8 * 8 + 4
            if texts:
                ax.text(
                    x + side / 2, y + side + 3, texts[i][j],
                    ha="center", va="top", fontsize=8, linespacing=1.2,
                )  # fmt: skip
        if labels:
            ax.text(-7, i * row_height + side / 2, labels[i], ha="right", va="center")
    ax.imshow(canvas, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    return figure


def _wrap(caption: str, limit: int) -> str:
    lines = caption.split("\n")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, max(limit, 4)))


def _resized(face: np.ndarray, side: int, doubled: bool) -> np.ndarray:
    if face.shape[:2] == (side, side):
        return face
    how = Image.Resampling.NEAREST if doubled else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(face)).resize((side, side), how))


# %%
@in_style
def plot_samples(
    images: Sequence[np.ndarray],
    row_labels: Sequence[str],
    *,
    captions: Sequence[Sequence[str]] = (),
    title: str = "Sample faces",
    note: str = "",
) -> Figure:
    """Draw one labeled row of faces per class; images[i] is uint8 (n, H, W, C), n may differ."""
    return draw_gallery(images, row_labels=row_labels, captions=captions, title=title, note=note)


# %%
@in_style
def plot_augmentation(
    augmented: np.ndarray,
    originals: np.ndarray,
    *,
    title: str = "What augmentation does",
    note: str = "",
) -> Figure:
    """Draw augmented faces above the same faces as stored; both uint8 (n, H, W, C)."""
    _check_rows("augmented", augmented, originals)
    return draw_gallery(
        [augmented, originals],
        row_labels=["augmented", "as stored"],
        cell=150,
        title=title,
        note=note,
    )


# %% [markdown]
# ## Training


# %%
@in_style
def plot_history(
    history: Sequence[Mapping],
    *,
    phase: str = "",
    selection_name: str = "selection",
    best_epoch: int | None = None,
    note: str = "",
) -> Figure:
    """Draw accuracy and loss against the epoch for training and for the selection set.

    `history` holds one row per epoch with the keys epoch, train_loss, train_accuracy,
    selection_loss, selection_accuracy (None or missing without a selection set) and perhaps
    selection_macro_f1. `best_epoch` is marked.
    """
    if not history:
        raise ValueError("history is empty, so there is no epoch to draw.")
    epochs = [row["epoch"] for row in history]
    title = f"{phase}: accuracy and loss" if phase else "Accuracy and loss"
    figure, axes = new_figure(3.3, title, note, columns=2)
    lines = (
        ("train", "training", BLUE, "-"),
        ("selection", clean(selection_name, 28), ORANGE, "-"),
        ("selection_macro_f1", f"{clean(selection_name, 28)}, macro-F1", GREEN, "--"),
    )
    for ax, kind in zip(axes[0], ("accuracy", "loss"), strict=True):
        handles, names = [], []
        for start, name, color, dashes in lines:
            key = start if start.endswith("f1") else f"{start}_{kind}"
            values = np.array([row.get(key) for row in history], dtype=np.float64)
            if np.isnan(values).all() or (start.endswith("f1") and kind == "loss"):
                continue
            handles += ax.plot(
                epochs, values, dashes, color=color, marker="o", markersize=3.5, linewidth=1.6
            )
            names.append(name)
        if best_epoch is not None:
            handles.append(ax.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1.2))
            names.append(f"kept: epoch {best_epoch}")
        ax.set_title(kind)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(epochs) == 1:
            ax.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        if kind == "accuracy":
            as_percent(ax.yaxis)
            figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


# %% [markdown]
# ## Results per class


# %%
@in_style
def plot_confusion(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "Confusion matrix",
    note: str = "",
) -> Figure:
    """Draw a confusion matrix (K, K) twice: as counts, and in percent of each true class."""
    confusion = np.asarray(confusion)
    _check_rows("confusion", confusion, class_names)
    support = confusion.sum(axis=1, keepdims=True)
    share = np.divide(
        100.0 * confusion, support, out=np.full(confusion.shape, np.nan), where=support > 0
    )
    figure, axes = new_figure(4.9, title, note, columns=2)
    draw_matrix(axes[0, 0], confusion, class_names, fmt=",.0f", cmap="Blues")
    draw_matrix(axes[0, 1], share, class_names, fmt=".1f", cmap="Oranges", low=0, high=100)
    axes[0, 0].set_title(f"images (n = {int(confusion.sum()):,})")
    axes[0, 1].set_title("percent of the true class")
    axes[0, 1].set_ylabel("")
    return figure


# %%
def draw_matrix(
    ax: Axes,
    values: np.ndarray,
    names: Sequence[str],
    *,
    fmt: str,
    cmap: str,
    low: float | None = None,
    high: float | None = None,
    truth: str = "true class",
    prediction: str = "predicted class",
) -> None:
    """Draw a square heat map with its numbers; NaN stays white with a dash."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    sns.heatmap(
        np.where(known, values, 0), mask=~known, ax=ax, cmap=cmap, vmin=low, vmax=high, annot=True,
        fmt=fmt, annot_kws={"fontsize": 8 if len(names) <= 8 else 6.5}, cbar=False, square=True,
        linewidths=0.6, linecolor="white",
    )  # fmt: skip
    for i, j in np.argwhere(~known):
        ax.text(j + 0.5, i + 0.5, "–", ha="center", va="center", color=GREY, fontsize=8)
    spots = np.arange(len(names)) + 0.5
    shown = [clean(name, 12) for name in names]
    ax.set_xticks(spots, shown, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(spots, shown, rotation=0)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set_xlabel(prediction)
    ax.set_ylabel(truth)


# %%
@in_style
def plot_class_accuracy(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "Accuracy per class",
    note: str = "",
) -> Figure:
    """Draw the share of each true class that is right, and their mean as a dashed line."""
    confusion = np.asarray(confusion)
    _check_rows("confusion", confusion, class_names)
    support = confusion.sum(axis=1)
    share = np.divide(
        np.diag(confusion), support, out=np.full(len(support), np.nan), where=support > 0
    )
    if np.isnan(share).all():
        raise ValueError("confusion counts no image, so there is no accuracy to draw.")
    figure, axes = new_figure(3.4, title, note)
    ax = axes[0, 0]
    ax.bar(range(len(share)), np.nan_to_num(share), 0.68, color=BLUE)
    mean = float(np.nanmean(share))
    line = ax.axhline(mean, color=RED, linestyle="--", linewidth=1.4)
    for k, value in enumerate(share):
        shown = "no image" if np.isnan(value) else f"{100 * value:.1f} %"
        ax.text(
            k, np.nan_to_num(value) + 0.015, shown, ha="center", va="bottom", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    _name_ticks(ax, class_names)
    as_percent(ax.yaxis)
    ax.set_ylim(0, 1.1)
    ax.set_yticks(np.arange(0, 1.01, 0.2))
    ax.set_ylabel("right answers")
    figure.legend([line], [f"mean {100 * mean:.1f} %"], loc="outside upper right")
    return figure


# %%
@in_style
def plot_class_scores(
    per_class: Mapping[str, Mapping[str, float]],
    *,
    title: str = "Precision, recall and F1 per class",
    note: str = "",
) -> Figure:
    """Draw precision, recall and F1 (0..1) side by side; `per_class` as `evaluate` returns it."""
    figure, axes = new_figure(3.4, title, note)
    ax = axes[0, 0]
    spots, handles = np.arange(len(per_class)), []
    for k, (key, color) in enumerate(
        zip(("precision", "recall", "f1"), (BLUE, ORANGE, GREEN), strict=True)
    ):
        values = [float(scores[key]) for scores in per_class.values()]
        handles.append(ax.bar(spots + (k - 1) * 0.27, values, 0.25, color=color))
        ax.bar_label(handles[-1], fmt="{:.2f}", fontsize=7, padding=1)
    _name_ticks(ax, list(per_class))
    ax.set_ylim(0, 1.08)
    ax.set_yticks(np.arange(0, 1.01, 0.2))
    figure.legend(handles, ["precision", "recall", "F1"], loc="outside upper right", ncols=3)
    return figure


# %% [markdown]
# ## Single faces


# %%
@in_style
def plot_mistakes(
    images: np.ndarray,
    truths: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    *,
    columns: int = 6,
    title: str = "Misclassified faces",
    note: str = "",
) -> Figure:
    """Draw faces, uint8 (n, H, W, C), with true name, predicted name and its probability (0..1)."""
    for what, values in (("truths", truths), ("predictions", predictions)):
        _check_rows(what, values, images)
    _check_rows("confidences", confidences, images)
    captions = [
        f"true {clean(t, 12)}\nsays {clean(p, 12)}\n{100 * c:.0f} %"
        for t, p, c in zip(truths, predictions, confidences, strict=True)
    ]
    starts = range(0, len(captions), columns)
    return draw_gallery(
        [images[s : s + columns] for s in starts],
        captions=[captions[s : s + columns] for s in starts],
        cell=120,
        title=title,
        note=note,
    )


# %%
@in_style
def plot_prediction(
    image: np.ndarray,
    probabilities: Sequence[float],
    class_names: Sequence[str],
    *,
    min_confidence: float = 0.0,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw a face, uint8 (H, W[, C]), beside the probability (0..1) of every class.

    Below `min_confidence` (a dotted line) the title says "uncertain". Without `title`, the title is
    the answer itself.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    _check_rows("probabilities", probabilities, class_names)
    face = to_rgb([image])[0]
    best = int(probabilities.argmax())
    answer = f"{clean(class_names[best], 24)} {100 * probabilities[best]:.1f} %"
    unsure = probabilities[best] < min_confidence
    if unsure:
        answer = f"uncertain (most likely {answer})"
    figure, axes = new_figure(3.1, title or answer, note, width=7.5, columns=2)
    left, ax = axes[0]
    left.imshow(face)
    left.set_axis_off()
    colors = [ORANGE if k == best and not unsure else PALE for k in range(len(probabilities))]
    bars = ax.barh(range(len(probabilities)), probabilities, 0.72, color=colors)
    ax.bar_label(bars, [f"{100 * p:.1f} %" for p in probabilities], fontsize=8.5, padding=3)
    if min_confidence > 0:
        ax.axvline(min_confidence, color=GREY, linestyle=":", linewidth=1.4)
    ax.set_yticks(range(len(class_names)), [clean(name) for name in class_names])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xlim(0, max(1.16 * float(probabilities[best]), min_confidence * 1.05, 0.05))
    ax.spines["bottom"].set_visible(False)
    ax.set_xticks([])
    return figure


# %% [markdown]
# ## Demo
# The numbers of the original notebook's last phase, and drawn faces.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.plots import plot_class_counts, plot_confusion, plot_samples
#
# names = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# faces = [
#     np.stack([np.asarray(draw_face(name, seed=seed)) for seed in range(5)]) for name in names[:4]
# ]
# plot_samples(faces, names[:4], note="drawn faces")

# %% tags=["active-ipynb"]
# plot_class_counts(
#     {
#         "train": [3995, 436, 4097, 7215, 4965, 4830, 3171],
#         "test": [958, 111, 1024, 1774, 1233, 1247, 831],
#     },
#     names,
#     title="FER2013: images per class",
# )

# %% tags=["active-ipynb"]
# original = np.array([
#     [597, 29, 88, 31, 86, 105, 22],
#     [21, 81, 2, 2, 1, 3, 1],
#     [131, 15, 438, 21, 87, 229, 103],
#     [32, 5, 28, 1514, 110, 45, 40],
#     [73, 12, 37, 59, 836, 194, 22],
#     [131, 16, 115, 41, 213, 714, 17],
#     [21, 0, 77, 36, 15, 15, 667],
# ])
# plot_confusion(original, names, title="The original notebook's confusion matrix")
