# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Confusions: which class is taken for which
# Everything that depends only on *which* class was predicted follows from one small table: the
# confusion matrix, with a row per true class and a column per predicted one. This module counts
# it, scores it, and asks which of its entries mean something.

# %%
"""Confusion matrices: counting, scoring, and testing which confusions stand out."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import classification_report

# %% [markdown]
# ## What is accepted
# A wrong shape or a NaN is cheaper to explain here than as a strange number ten cells later.


# %%
def check_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names as a tuple, or raise ValueError if one stands there twice."""
    names = tuple(str(name) for name in class_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class_names holds {twice[0]!r} twice, so give every class its own name.")
    if not names:
        raise ValueError("class_names is empty, so pass one name per column of the scores.")
    return names


# %%
def check_labels(labels: np.ndarray, num_classes: int, what: str = "labels") -> np.ndarray:
    """Return `labels` as int64 (N,) in 0..num_classes-1; ValueError says which row is wrong."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{what} has shape {labels.shape}, but one class number per image is needed: pass (N,)."
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"{what} has type {labels.dtype}, but class numbers are integers.")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{what} holds {int(labels[wrong[0]])} in row {wrong[0]}, but {num_classes} classes "
            f"are numbered 0 to {num_classes - 1}: check the order of the class names."
        )
    return labels.astype(np.int64)


# %%
def check_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return a confusion matrix as int64 (K, K) counts, or raise a one-sentence ValueError."""
    confusion = np.asarray(confusion)
    size = len(check_names(class_names))
    if confusion.shape != (size, size):
        raise ValueError(
            f"confusion has shape {confusion.shape}, but {size} class names need ({size}, {size})."
        )
    if (confusion < 0).any() or not np.equal(confusion, np.round(confusion)).all():
        raise ValueError("confusion must hold counts (whole numbers from 0), not shares.")
    return confusion.astype(np.int64)


# %% [markdown]
# ## Scores of a confusion matrix
# Writing the formulas for a whole stack of matrices lets the bootstrap of `evaluation` score ten
# thousand of them in a fraction of a second.


# %%
def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 (K, K) counts: row = true class, column = predicted class."""
    labels = check_labels(labels, num_classes)
    predicted = check_labels(predicted, num_classes, "predicted")
    if len(labels) != len(predicted):
        raise ValueError(
            f"there are {len(labels)} labels but {len(predicted)} predictions: "
            "pass both for the same images."
        )
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


# %%
def class_scores(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall, f1, support and predicted, each (..., K), for matrices (..., K, K).

    0 / 0 counts as 0, as in scikit-learn with `zero_division=0`.
    """
    confusions = np.asarray(confusions)
    hits = np.diagonal(confusions, axis1=-2, axis2=-1).astype(np.float64)
    support, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)

    def share(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.divide(top, bottom, out=np.zeros_like(hits), where=bottom > 0)

    return {
        "precision": share(hits, predicted),
        "recall": share(hits, support),
        "f1": share(2 * hits, support + predicted),
        "support": support,
        "predicted": predicted,
    }


# %%
def confusion_scores(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, macro_f1, balanced_accuracy and kappa (...,) of matrices (..., K, K).

    As in scikit-learn, macro-F1 is the mean over classes that occur as truth or prediction, and
    balanced accuracy the mean recall of classes that occur as truth. Cohen's kappa is 0 where it
    is undefined (a single class everywhere).
    """
    confusions = np.asarray(confusions)
    each = class_scores(confusions)
    support, predicted = each["support"], each["predicted"]
    total = support.sum(axis=-1)
    agree = np.diagonal(confusions, axis1=-2, axis2=-1).sum(axis=-1) / total
    by_chance = (support / total[..., None] * (predicted / total[..., None])).sum(axis=-1)
    room = 1 - by_chance
    return {
        "accuracy": agree,
        "macro_f1": each["f1"].sum(axis=-1) / ((support + predicted) > 0).sum(axis=-1),
        "balanced_accuracy": each["recall"].sum(axis=-1) / (support > 0).sum(axis=-1),
        "kappa": np.divide(agree - by_chance, room, out=np.zeros_like(room), where=room > 1e-12)[
            ()
        ],
    }


# %%
def report_text(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Return scikit-learn's classification report (precision, recall, F1, support) as text."""
    confusion = check_confusion(confusion, class_names)
    truth, predicted = np.indices(confusion.shape)
    occur = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    return classification_report(
        np.repeat(truth.ravel(), confusion.ravel()),
        np.repeat(predicted.ravel(), confusion.ravel()),
        labels=occur,
        target_names=[str(class_names[k]) for k in occur],
        digits=3,
        zero_division=0,
    )


# %% [markdown]
# ## Which confusions, and do they mean something?
# The original notebook lists confusions above 15 % and classes below 50 %, and runs a chi-square
# test. That test only asks whether prediction and truth are related at all, which every network
# better than chance passes. So its answer comes with the strength of the relation (Cramér's V)
# and with one test per cell, corrected for there being many.


# %%
def top_confusions(
    confusion: np.ndarray, class_names: Sequence[str], k: int = 3, above: float = 0.10
) -> list[dict]:
    """Return the `k` largest off-diagonal row shares, of which only those above `above` are kept.

    Each is {truth, prediction, share (0..1 of the true class), count}, largest first; equal shares
    keep the order of the classes.
    """
    confusion = check_confusion(confusion, class_names)
    support = confusion.sum(axis=1)
    cells = [
        {
            "truth": str(class_names[i]),
            "prediction": str(class_names[j]),
            "share": float(confusion[i, j] / support[i]),
            "count": int(confusion[i, j]),
        }
        for i, j in np.ndindex(confusion.shape)
        if i != j and support[i] and confusion[i, j] / support[i] > above
    ]
    return sorted(cells, key=lambda cell: -cell["share"])[:k]


# %%
def chi_square(confusion: np.ndarray, class_names: Sequence[str]) -> dict:
    """Test truth against prediction, cell by cell, and list the original notebook's confusions.

    Classes that are never true (empty row) or never predicted (empty column) are dropped and named
    in `dropped_rows`, `dropped_columns` and `note`. Keys:

    - statistic, p_value, dof, significant (p < 0.05), cramers_v (0..1): Pearson's chi-square, no
      continuity correction; None when fewer than 2 rows or columns are left.
    - residuals, p_adjusted (K x K, None in dropped rows and columns): adjusted standardized
      residuals (about normal if truth and prediction were independent) and two-sided p values,
      Holm-corrected over all cells. `exceeding`: the off-diagonal cells above chance with
      p_adjusted < 0.05. `small_expected`: cells with fewer than 5 expected, where that is rough.
    - among_errors: the same question asked of the wrong answers alone (see `error_residuals`).
    - high_confusions: row share above 0.15; weak_classes: recall below 0.5, with up to three
      targets above 0.05.

    Sources: Agresti 2013, "Categorical Data Analysis", sections 3.2-3.3; Holm 1979, "A simple
    sequentially rejective multiple test procedure".
    """
    names = check_names(class_names)
    confusion = check_confusion(confusion, names)
    rows = np.flatnonzero(confusion.sum(axis=1))
    columns = np.flatnonzero(confusion.sum(axis=0))
    result: dict = {
        "n": int(confusion.sum()),
        "dropped_rows": [name for k, name in enumerate(names) if k not in rows],
        "dropped_columns": [name for k, name in enumerate(names) if k not in columns],
    }
    notes = []
    if result["dropped_rows"]:
        notes.append(f"no image of {', '.join(result['dropped_rows'])}: row dropped")
    if result["dropped_columns"]:
        notes.append(f"{', '.join(result['dropped_columns'])} never predicted: column dropped")
    if len(rows) < 2 or len(columns) < 2:
        notes.append("fewer than 2 rows or columns are left, so there is no test")
        test = dict.fromkeys(("statistic", "p_value", "dof", "significant", "cramers_v"))
        expected = residuals = np.full(confusion.shape, np.nan)
    else:
        part = confusion[np.ix_(rows, columns)]
        statistic, p_value, dof, fitted = stats.chi2_contingency(part, correction=False)
        total = part.sum()
        open_rows = 1 - part.sum(axis=1, keepdims=True) / total
        open_columns = 1 - part.sum(axis=0, keepdims=True) / total
        expected = np.full(confusion.shape, np.nan)
        residuals = expected.copy()
        expected[np.ix_(rows, columns)] = fitted
        residuals[np.ix_(rows, columns)] = (part - fitted) / np.sqrt(
            fitted * open_rows * open_columns
        )
        test = {
            "statistic": float(statistic),
            "p_value": float(p_value),
            "dof": int(dof),
            "significant": bool(p_value < 0.05),
            "cramers_v": float(np.sqrt(statistic / total / (min(part.shape) - 1))),
        }
    result.update(test)
    result["note"] = "; ".join(notes)
    result.update(_cell_tests(confusion, expected, residuals, names))
    result["among_errors"] = error_residuals(confusion, names)
    result["high_confusions"] = top_confusions(confusion, names, k=len(names) ** 2, above=0.15)
    recall = class_scores(confusion)["recall"]
    result["weak_classes"] = [
        {
            "name": names[k],
            "accuracy": float(recall[k]),
            "support": int(confusion[k].sum()),
            "targets": [
                {"prediction": cell["prediction"], "share": cell["share"], "count": cell["count"]}
                for cell in top_confusions(confusion, names, k=len(names) ** 2, above=0.05)
                if cell["truth"] == names[k]
            ][:3],
        }
        for k in rows
        if recall[k] < 0.5
    ]
    return result


# %%
def error_residuals(confusion: np.ndarray, class_names: Sequence[str]) -> dict:
    """Ask of the wrong answers alone: which confusions stand out?

    Chance here means quasi-independence: every true class makes its number of errors, every class
    attracts its number of wrong answers, and nothing else links the two. Against plain
    independence the many right answers drown the wrong ones. Keys as in `chi_square`: residuals,
    p_adjusted (K x K, None on the diagonal and in rows and columns without errors), exceeding,
    small_expected. Sources: Goodman 1968, "The analysis of cross-classified data" (JASA 63);
    leverages as in Agresti 2013, section 4.5.
    """
    names = check_names(class_names)
    confusion = check_confusion(confusion, names)
    errors = confusion * ~np.eye(len(names), dtype=bool)
    rows, columns = np.flatnonzero(errors.sum(axis=1)), np.flatnonzero(errors.sum(axis=0))
    expected = np.full(errors.shape, np.nan)
    residuals = expected.copy()
    if len(rows) > 1 and len(columns) > 1:
        wanted_rows, wanted_columns = errors.sum(axis=1)[rows], errors.sum(axis=0)[columns]
        fitted = (rows[:, None] != columns).astype(np.float64)
        for _ in range(2000):  # iterative proportional fitting; some twenty rounds are usual
            fitted *= (wanted_rows / np.maximum(fitted.sum(axis=1), 1e-300))[:, None]
            fitted *= wanted_columns / np.maximum(fitted.sum(axis=0), 1e-300)
            if np.allclose(fitted.sum(axis=1), wanted_rows, rtol=0, atol=1e-9):
                break
        i, j = np.nonzero(fitted > 1e-9)
        weight = np.sqrt(fitted[i, j])
        design = np.hstack([np.eye(len(rows))[i], np.eye(len(columns))[j]]) * weight[:, None]
        leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
        spread = weight * np.sqrt(np.clip(1 - leverage, 0, None))
        free = leverage < 1 - 1e-9  # a cell that its margins determine cannot stand out
        cells = rows[i[free]], columns[j[free]]
        expected[rows[i], columns[j]] = fitted[i, j]
        residuals[cells] = (errors[cells] - fitted[i, j][free]) / spread[free]
    return _cell_tests(errors, expected, residuals, names)


def _cell_tests(
    counts: np.ndarray, expected: np.ndarray, residuals: np.ndarray, names: Sequence[str]
) -> dict:
    tested = np.isfinite(residuals)
    p_adjusted = np.full(residuals.shape, np.nan)
    p_adjusted[tested] = holm(2 * stats.norm.sf(np.abs(residuals[tested])))
    exceeding = [
        {
            "truth": names[i],
            "prediction": names[j],
            "count": int(counts[i, j]),
            "expected": float(expected[i, j]),
            "residual": float(residuals[i, j]),
            "p_adjusted": float(p_adjusted[i, j]),
        }
        for i, j in np.argwhere(tested & (residuals > 0) & (p_adjusted < 0.05))
        if i != j
    ]
    return {
        "residuals": _without_nan(residuals),
        "p_adjusted": _without_nan(p_adjusted),
        "exceeding": sorted(exceeding, key=lambda cell: -cell["residual"]),
        "small_expected": int((expected[tested] < 5).sum()),
    }


def _without_nan(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


# %%
def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's step-down correction of p values (M,): each at most 1, order kept."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# %%
def chi_square_text(result: Mapping) -> str:
    """Return the answer of `chi_square` as lines for people, the original's lists included."""
    if result["statistic"] is None:
        lines = [f"chi-square: {result['note']}"]
    else:
        p_value = result["p_value"]
        shown = "< 1e-300" if p_value < 1e-300 else f"{p_value:.3g}"  # it may have underflowed to 0
        lines = [
            f"chi-square {result['statistic']:.2f}, p {shown}, "
            f"{result['dof']} degrees of freedom, n {result['n']:,}, "
            f"Cramér's V {result['cramers_v']:.3f}",
            "truth and prediction are related (p < 0.05), as in any model better than chance"
            if result["significant"]
            else "no sign that truth and prediction are related (p >= 0.05)",
        ]
        if result["note"]:
            lines.append(f"note: {result['note']}")
    for title, part in (
        ("confusions above chance", result),
        ("confusions that stand out among the errors", result["among_errors"]),
    ):
        lines.append(f"{title} (Holm-corrected p < 0.05):")
        if part["small_expected"]:
            lines.append(f"  rough: {part['small_expected']} cells expect fewer than 5 faces")
        lines += [
            f"  {c['truth']} -> {c['prediction']}: {c['count']} for {c['expected']:.1f} expected "
            f"(residual {c['residual']:+.1f})"
            for c in part["exceeding"]
        ] or ["  none"]
    lines.append("high confusions:")
    lines += [
        f"  {c['truth']} -> {c['prediction']}: {100 * c['share']:.1f} % ({c['count']})"
        for c in result["high_confusions"]
    ] or ["  none"]
    lines.append("weak classes:")
    for each in result["weak_classes"]:
        targets = ", ".join(f"{t['prediction']} {100 * t['share']:.1f} %" for t in each["targets"])
        lines.append(
            f"  {each['name']}: {100 * each['accuracy']:.1f} % right"
            + (targets and f", taken for {targets}")
        )
    if not result["weak_classes"]:
        lines.append("  none")
    return "\n".join(lines)


# %% [markdown]
# ## Demo
# The matrix that the original notebook printed for its last phase: 7,178 faces of FER2013, both
# halves of the test folder pooled.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.confusions import chi_square, chi_square_text, report_text
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
# print(report_text(original, names))

# %% [markdown]
# Against plain independence only one confusion exceeds chance, because the right answers fill the
# margins. Among the errors alone, eleven stand out: these are the ones worth looking at.

# %% tags=["active-ipynb"]
# print(chi_square_text(chi_square(original, names)))
