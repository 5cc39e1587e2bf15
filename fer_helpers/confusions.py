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
# it, scores it, and finds its largest mistakes; `independence` tests which of its entries mean
# something.

# %%
"""Confusion matrices: counting, scoring, and the largest confusions."""

from collections.abc import Sequence

import numpy as np
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


# %% [markdown]
# ## Demo
# The matrix that the original notebook printed for its last phase: 7,178 faces of FER2013, both
# halves of the test folder pooled.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.confusions import report_text
# from fer_helpers.independence import chi_square, chi_square_text
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
