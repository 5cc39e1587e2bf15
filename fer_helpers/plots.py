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

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from fer_helpers.plot_analysis import (
    plot_embedding,
    plot_mcnemar,
    plot_precision_recall,
    plot_reliability,
    plot_residuals,
    plot_risk_coverage,
    plot_robustness,
)
from fer_helpers.plot_faces import (
    plot_attention,
    plot_augmentation,
    plot_mistakes,
    plot_prediction,
    plot_samples,
    plot_suspects,
)
from fer_helpers.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    as_counts,
    as_percent,
    check_rows,
    clean,
    draw_matrix,
    in_style,
    legend_below,
    name_ticks,
    new_figure,
    png_bytes,
    savefig,
)

# One address for every figure, wherever it is written.
__all__ = [
    "plot_attention",
    "plot_augmentation",
    "plot_class_accuracy",
    "plot_class_counts",
    "plot_class_scores",
    "plot_confusion",
    "plot_embedding",
    "plot_history",
    "plot_mcnemar",
    "plot_mistakes",
    "plot_precision_recall",
    "plot_prediction",
    "plot_reliability",
    "plot_residuals",
    "plot_risk_coverage",
    "plot_robustness",
    "plot_samples",
    "plot_suspects",
    "png_bytes",
    "savefig",
]

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
        check_rows(f"counts[{split!r}]", values, class_names)
    figure, axes = new_figure(3.6 if len(counts) > 1 else 3.3, title, note)
    ax = axes[0, 0]
    spots, size = np.arange(len(class_names)), 0.82 / max(len(counts), 1)
    handles = []
    for k, values in enumerate(counts.values()):
        at = spots + (k - (len(counts) - 1) / 2) * size
        handles.append(ax.bar(at, values, size * 0.94, color=PALETTE[k % len(PALETTE)]))
        if len(counts) * len(class_names) <= 27:
            ax.bar_label(handles[-1], fmt="{:,.0f}", fontsize=7.5, padding=1)
    name_ticks(ax, class_names)
    ax.set_ylabel("images")
    as_counts(ax.yaxis)
    ax.margins(y=0.12)
    if len(counts) > 1:
        labels = [f"{clean(name, 24)} ({int(np.sum(v)):,})" for name, v in counts.items()]
        legend_below(figure, handles, labels, columns=min(len(counts), 4))
    return figure


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
            legend_below(figure, handles, names, columns=len(names))
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
    check_rows("confusion", confusion, class_names)
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
@in_style
def plot_class_accuracy(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "Accuracy per class",
    note: str = "",
) -> Figure:
    """Draw the share of each true class that is right, and their mean as a dashed line.

    The whiskers are 95 % Wilson intervals (Wilson 1927), which also hold for few images.
    """
    confusion = np.asarray(confusion)
    check_rows("confusion", confusion, class_names)
    support = confusion.sum(axis=1)
    share = np.divide(
        np.diag(confusion), support, out=np.full(len(support), np.nan), where=support > 0
    )
    if np.isnan(share).all():
        raise ValueError("confusion counts no image, so there is no accuracy to draw.")
    figure, axes = new_figure(3.7, title, note)
    ax = axes[0, 0]
    ax.bar(range(len(share)), np.nan_to_num(share), 0.68, color=BLUE)
    mean = float(np.nanmean(share))
    line = ax.axhline(mean, color=RED, linestyle="--", linewidth=1.4)
    for k, (value, count) in enumerate(zip(share, support, strict=True)):
        shown, top = "no image", 0.0
        if count:
            shown = f"{100 * value:.1f} %\nof {count:,.0f}"
            sure = stats.binomtest(int(confusion[k, k]), int(count)).proportion_ci(method="wilson")
            whiskers = [[value - sure.low], [sure.high - value]]
            ax.errorbar(k, value, whiskers, color="black", capsize=4, linewidth=1.2)
            top = sure.high
        ax.text(
            k, top + 0.02, shown, ha="center", va="bottom", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    name_ticks(ax, class_names)
    as_percent(ax.yaxis)
    ax.set_ylim(0, 1.25)
    ax.set_yticks(np.arange(0, 1.01, 0.2))
    ax.set_ylabel("right answers")
    legend_below(figure, [line], [f"mean {100 * mean:.1f} %; whiskers: 95 % interval"])
    return figure


# %%
@in_style
def plot_class_scores(
    per_class: Mapping[str, Mapping[str, float]],
    *,
    title: str = "Precision, recall and F1 per class",
    note: str = "",
) -> Figure:
    """Draw precision, recall and F1 (0..1) side by side; `per_class` as `evaluate` returns it.

    A class without an image has no bar for recall and F1.
    """
    figure, axes = new_figure(3.7, title, note)
    ax = axes[0, 0]
    spots, handles = np.arange(len(per_class)), []
    for k, (key, color) in enumerate(
        zip(("precision", "recall", "f1"), (BLUE, ORANGE, GREEN), strict=True)
    ):
        values = [
            float(scores[key]) if scores["support"] or key == "precision" else np.nan
            for scores in per_class.values()
        ]
        handles.append(ax.bar(spots + (k - 1) * 0.27, values, 0.25, color=color))
        if len(per_class) <= 12:  # beside more bars the numbers would run into each other
            texts = ["" if np.isnan(value) else f"{value:.2f}" for value in values]
            ax.bar_label(handles[-1], texts, fontsize=7, padding=1)
    name_ticks(ax, list(per_class))
    ax.set_ylim(0, 1.08)
    ax.set_yticks(np.arange(0, 1.01, 0.2))
    legend_below(figure, handles, ["precision", "recall", "F1"], columns=3)
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
