# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures about trust
#
# How sure is the model, how sure may it be, where does it break, and which of its confusions are
# more than chance? These figures take what `fer_helpers.evaluation`, `exploration` and
# `corruptions` return.

# %%
"""Draw calibration, coverage, robustness, embeddings and tests: numbers in, figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fer_helpers.plot_style import (
    BLUE,
    GREY,
    ORANGE,
    PALE,
    PALETTE,
    RED,
    as_counts,
    as_percent,
    check_rows,
    clean,
    draw_matrix,
    in_style,
    legend_below,
    new_figure,
)

DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"
CURVE_POINTS = 300  # finer steps than a notebook can show only make files larger


def _thin(*arrays: np.ndarray) -> list[np.ndarray]:
    size = len(arrays[0])
    kept = np.unique(np.linspace(0, size - 1, min(size, CURVE_POINTS)).round().astype(int))
    return [np.asarray(array)[kept] for array in arrays]


# %% [markdown]
# ## Is its confidence true?


# %%
@in_style
def plot_reliability(
    after: Mapping,
    before: Mapping | None = None,
    *,
    title: str = "Reliability: is 70 % confidence right 7 times in 10?",
    note: str = "",
) -> Figure:
    """Draw accuracy against confidence, and how many images stand behind each point.

    `after` and `before` (a temperature) are answers of `reliability`. The band holds 95 % of what a
    perfectly calibrated model would show on the same images, bin by bin.
    """
    figure, axes = new_figure(4.0, title, note, columns=2)
    left, right = axes[0]
    edges = after["edges"]
    band = left.stairs(after["high"], edges, baseline=after["low"], fill=True, color=PALE)
    (diagonal,) = left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    handles, names = [band, diagonal], ["range of a calibrated model", "confidence = accuracy"]
    for part, color, mark, name in (
        (before, ORANGE, "s--", "before temperature"),
        (after, BLUE, "o-", "after temperature" if before else "this model"),
    ):
        if part is not None:
            some = part["count"] > 0  # a line runs on over an empty bin
            handles += left.plot(
                part["confidence"][some], part["accuracy"][some],
                mark, color=color, markersize=4.5, linewidth=1.5,
            )  # fmt: skip
            low, high = part["ece_calibrated_range"]
            names.append(
                f"{name}: ECE {100 * part['ece']:.1f} % "
                f"(calibrated: {100 * low:.1f} to {100 * high:.1f} %)"
            )
            right.stairs(part["count"], edges, color=color, linewidth=1.8, fill=False)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="right answers", aspect="equal")
    right.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    as_counts(right.yaxis)
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        as_percent(axis)
    legend_below(figure, handles, names, columns=2)
    return figure


# %%
@in_style
def plot_risk_coverage(
    curve: Mapping,
    chosen: Mapping | None = None,
    *,
    title: str = "Risk and coverage: what silence buys",
    note: str = "",
) -> Figure:
    """Draw the share of wrong answers against the share of faces answered.

    `curve` comes from `risk_coverage`; `chosen` (threshold, coverage, accuracy: the answer of
    `abstain_threshold` or `answered_above`) is marked.
    """
    coverage = np.asarray(curve["coverage"])
    wrong = 1 - np.asarray(curve["accuracy"])
    figure, axes = new_figure(3.8, title, note, width=8)
    ax = axes[0, 0]
    x, y = _thin(coverage, wrong)
    ax.plot(x, y, color=BLUE, linewidth=1.8)
    ax.fill_between(x, y, color=PALE, alpha=0.5, linewidth=0)
    handles = [ax.axhline(wrong[-1], color=GREY, linestyle=":", linewidth=1.2)]
    names = [f"every face answered: {100 * wrong[-1]:.1f} % wrong"]
    if chosen is not None and chosen["accuracy"] is None:
        handles += ax.plot([], [], "o", color=RED, markersize=7)
        names.append(f"answered from confidence {100 * chosen['threshold']:.0f} %: no face")
    elif chosen is not None:
        risk = 1 - chosen["accuracy"]
        ax.plot([chosen["coverage"]] * 2, [0, risk], color=RED, linestyle="--", linewidth=1.3)
        handles += ax.plot(chosen["coverage"], risk, "o", color=RED, markersize=7)
        names.append(
            f"answered from confidence {100 * chosen['threshold']:.0f} %: "
            f"{100 * chosen['coverage']:.1f} % of the faces, {100 * risk:.1f} % of these wrong, "
            f"{100 * chosen['accuracy']:.1f} % right"
        )
    ax.set(xlim=(0, 1), xlabel="faces answered", ylabel="wrong answers")
    ax.set_ylim(0, max(1.15 * float(y.max()), 0.02))
    as_percent(ax.xaxis)
    as_percent(ax.yaxis)
    legend_below(figure, handles, names)
    return figure


# %%
@in_style
def plot_precision_recall(
    curves: Mapping[str, Mapping],
    class_names: Sequence[str],
    *,
    title: str = "Precision and recall of each class against the rest",
    note: str = "",
) -> Figure:
    """Draw the curves of `precision_recall`, each with its average precision."""
    figure, axes = new_figure(4.2, title, note, width=8)
    ax = axes[0, 0]
    handles, names = [], []
    for k, name in enumerate(class_names):
        if name not in curves:
            continue
        recall, precision = curves[name]["recall"], curves[name]["precision"]
        # One point per recall that is reached, the best one: the others are vertical drops.
        recall, best = np.unique(recall[::-1], return_index=True)
        recall, precision = _thin(recall, precision[::-1][best])
        handles += ax.plot(
            recall, precision, DASHES[k % 4], color=PALETTE[k % len(PALETTE)], linewidth=1.7
        )
        names.append(f"{clean(name)} {curves[name]['average_precision']:.2f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    figure.legend(handles, names, loc="outside right center", title="average precision")
    return figure


# %% [markdown]
# ## What does it see, and what confuses it?


# %%
@in_style
def plot_embedding(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    highlight: Sequence[str] = (),
    title: str = "Embedding map (t-SNE): neighbors look alike to the network",
    note: str = "",
) -> Figure:
    """Draw points (n, 2) colored by their labels (n,); with `highlight` all other classes pale."""
    points, labels = np.asarray(points), np.asarray(labels)
    check_rows("labels", labels, points)
    unknown = [name for name in highlight if name not in class_names]
    if unknown:
        raise ValueError(f"there is no class {unknown[0]!r}: choose from {', '.join(class_names)}.")
    figure, axes = new_figure(5.2, title, note, width=8)
    ax = axes[0, 0]
    dots = {}
    for k in sorted(range(len(class_names)), key=lambda k: class_names[k] in highlight):
        here = points[labels == k]
        pale = bool(highlight) and class_names[k] not in highlight
        handle = ax.scatter(
            here[:, 0], here[:, 1], s=14, marker=MARKERS[k % len(MARKERS)],
            color="#dcdcdc" if pale else PALETTE[k % len(PALETTE)], linewidth=0,
            alpha=0.5 if pale else 0.85, rasterized=True,
        )  # fmt: skip
        if len(here) and not pale:
            dots[k] = handle
    shown = sorted(dots)  # as the classes are, whichever was drawn on top
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#cccccc")
    figure.legend(
        [dots[k] for k in shown], [clean(class_names[k]) for k in shown],
        loc="outside right center", markerscale=1.8,
    )  # fmt: skip
    return figure


# %%
@in_style
def plot_residuals(
    result: Mapping,
    class_names: Sequence[str],
    *,
    title: str = "Which confusions exceed chance? Residuals in sd; * is p < 0.05 after Holm",
    note: str = "",
) -> Figure:
    """Draw the standardized residuals of `chi_square`: over all answers, and among the errors.

    Orange is more often than chance, purple less often; a star marks a Holm-corrected p below 0.05.
    """
    figure, axes = new_figure(4.9, title, note, columns=2)
    for ax, part, name in (
        (axes[0, 0], result, "all answers (chance: truth and answer independent)"),
        (axes[0, 1], result["among_errors"], "wrong answers alone"),
    ):
        values = part["residuals"]
        check_rows("residuals", values, class_names)
        stars = np.where(part["p_adjusted"] < 0.05, "*", "")  # NaN is not
        # From 100 on without a decimal, which would not fit into the cell.
        decimals = np.where(np.abs(np.nan_to_num(values)) < 99.95, 1, 0)
        write = np.vectorize(lambda value, digits, star: f"{value:+.{digits}f}{star}")
        texts = write(values, decimals, stars)
        draw_matrix(ax, values, class_names, texts=texts, cmap="PuOr_r", low=-12, high=12)
        ax.set_title(name)
    axes[0, 1].set_ylabel("")
    return figure


# %%
@in_style
def plot_robustness(
    accuracies: Mapping[str, Sequence[float]],
    *,
    chance: float | None = None,
    title: str = "Accuracy on spoiled faces",
    note: str = "",
) -> Figure:
    """Draw accuracy (0..1) against severity 0 (untouched) to 5, a line per corruption."""
    figure, axes = new_figure(3.8, title, note, width=8)
    ax = axes[0, 0]
    handles, names = [], []
    for k, (name, values) in enumerate(accuracies.items()):
        handles += ax.plot(
            range(len(values)), values, DASHES[k % 4], marker=MARKERS[k % len(MARKERS)],
            color=PALETTE[k % len(PALETTE)], markersize=5, linewidth=1.6,
        )  # fmt: skip
        names.append(clean(name))
    if chance is not None:
        handles.append(ax.axhline(chance, color=GREY, linestyle=":", linewidth=1.2))
        names.append("always one class")
    ax.set(xlabel="severity", ylabel="right answers")
    ax.set_xticks(range(6), ["none", "1", "2", "3", "4", "5"])
    ax.set_ylim(bottom=0)
    as_percent(ax.yaxis)
    figure.legend(handles, names, loc="outside right center")
    return figure


# %% [markdown]
# ## One model against another


# %%
@in_style
def plot_mcnemar(
    p_values: np.ndarray,
    names: Sequence[str],
    *,
    title: str = "McNemar: do two runs differ?",
    note: str = "",
) -> Figure:
    """Draw p values (R, R) of all pairs of runs; NaN (diagonal, or not comparable) is a dash."""
    p_values = np.asarray(p_values, dtype=np.float64)
    check_rows("p_values", p_values, names)
    size = min(0.62 * len(names), 10) + 2.2
    # Two runs make a small matrix, whose title is wider than itself.
    width = max(size + 1.2, 0.12 * len(title) + 0.2, 5)
    figure, axes = new_figure(size, title, note, width=width)
    known = np.nan_to_num(p_values, nan=1.0)
    texts = np.where(known < 0.001, "<.001", np.char.mod("%.3f", known))
    draw_matrix(
        axes[0, 0], p_values, names, texts=texts, cmap="Blues_r", low=0, high=0.25, truth="",
        limit=24,
        prediction="p value; below 0.05 the runs differ",
    )  # fmt: skip
    return figure


# %% [markdown]
# ## Demo
# The confusion matrix of the original notebook, cell by cell against chance.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.evaluation import abstain_threshold, chi_square, fit_temperature
# from fer_helpers.evaluation import reliability, risk_coverage, softmax
# from fer_helpers.plot_analysis import plot_reliability, plot_residuals, plot_risk_coverage
#
# names = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# original = np.array([
#     [597, 29, 88, 31, 86, 105, 22],
#     [21, 81, 2, 2, 1, 3, 1],
#     [131, 15, 438, 21, 87, 229, 103],
#     [32, 5, 28, 1514, 110, 45, 40],
#     [73, 12, 37, 59, 836, 194, 22],
#     [131, 16, 115, 41, 213, 714, 17],
#     [21, 0, 77, 36, 15, 15, 667],
# ])
# plot_residuals(chi_square(original, names), names)

# %% [markdown]
# A made-up model that is twice as sure as it should be, before and after its temperature.

# %% tags=["active-ipynb"]
# generator = np.random.default_rng(0)
# honest = 2 * generator.normal(size=(4000, 7))
# labels = (softmax(honest).cumsum(axis=1) < generator.random((4000, 1))).sum(axis=1)
# temperature = fit_temperature(2 * honest[:2000], labels[:2000])
# before = softmax(2 * honest[2000:])
# after = softmax(2 * honest[2000:], temperature)
# plot_reliability(
#     reliability(after, labels[2000:]), reliability(before, labels[2000:]), note="made-up numbers"
# )

# %% tags=["active-ipynb"]
# plot_risk_coverage(
#     risk_coverage(after, labels[2000:]),
#     abstain_threshold(after, labels[2000:], coverage=0.8),
#     note="made-up numbers",
# )
