# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Calibration: how far a probability can be trusted
# A network that says "Happy, 90 %" makes two claims. This module checks and repairs the second
# one, and uses it: a model whose confidence means something may also answer "uncertain".

# %%
"""Probabilities that mean what they say: temperature, calibration error, abstaining."""

import numpy as np
from scipy import optimize, special

from fer_helpers.confusions import check_labels, confusion_matrix, confusion_scores

BINS = 15
SIMULATIONS = 1000


# %%
def check_scores(
    scores: np.ndarray, labels: np.ndarray, num_classes: int | None = None, what: str = "logits"
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 (N, K) and labels as int64 (N,); ValueError says what is wrong."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(
            f"{what} has shape {scores.shape}, but one row per image and one column per class is "
            "needed: pass (N, K)."
        )
    if num_classes is not None and scores.shape[1] != num_classes:
        raise ValueError(
            f"{what} has {scores.shape[1]} columns for {num_classes} class names: "
            "pass the names that the model was trained with."
        )
    if len(scores) == 0:
        raise ValueError(
            f"{what} is empty, so there is nothing to evaluate: pass at least 1 image."
        )
    if len(scores) != len(np.asarray(labels)):
        raise ValueError(
            f"{what} has {len(scores)} rows but there are {len(np.asarray(labels))} labels: "
            "pass both for the same images."
        )
    scores = scores.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if broken.size:
        raise ValueError(
            f"{what} is not finite in {broken.size} of {len(scores)} rows (first: {broken[0]}): "
            "the model has diverged or overflowed, so lower the learning rate or predict in fp32."
        )
    return scores, check_labels(labels, scores.shape[1])


# %%
def check_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Like `check_scores`, and every row must be a distribution (0..1, sum 1 within 0.001)."""
    probabilities, labels = check_scores(probabilities, labels, num_classes, "probabilities")
    wrong = np.flatnonzero(
        (np.abs(probabilities.sum(axis=1) - 1) > 1e-3) | (probabilities.min(axis=1) < 0)
    )
    if wrong.size:
        raise ValueError(
            f"probabilities do not add up to 1 in row {wrong[0]}: pass softmax(logits), not logits."
        )
    return probabilities, labels


# %% [markdown]
# ## From scores to probabilities
# Training pushes a network to be more certain than it is right. Dividing its scores by one
# number, the temperature, fitted on the selection set, repairs most of that and changes no
# prediction.


# %%
def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities float64 (N, K) of `logits / temperature` (above 0)."""
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}, but it must be above 0 (1 changes nothing)."
        )
    return special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


# %%
def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest NLL on these images, between 0.05 and 20.

    It is 1 where every answer is right: the search would end at the bound.
    Fit it on the selection set, never on the images that are scored. Source: Guo et al. 2017,
    "On Calibration of Modern Neural Networks", section 4.2 (https://arxiv.org/abs/1706.04599).
    """
    logits, labels = check_scores(logits, labels)
    if (logits.argmax(axis=1) == labels).all():
        return 1.0  # a few images, all answered rightly, would ask for certainty
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        return float(np.mean(special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    # NLL has a single valley in 1 / temperature, so a bounded search cannot miss it.
    found = optimize.minimize_scalar(
        loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


# %%
def logit_adjust(logits: np.ndarray, prior: np.ndarray, tau: float) -> np.ndarray:
    """Return `logits - tau * log(prior)`, float64 (N, K): tau above 0 favors rare classes.

    `prior` (K,) are the class shares (or counts) of the training set, all above 0. Choose tau on
    the selection set. Source: Menon et al. 2021, "Long-tail learning via logit adjustment"
    (https://arxiv.org/abs/2007.07314).
    """
    logits = np.asarray(logits, dtype=np.float64)
    prior = np.asarray(prior, dtype=np.float64)
    if logits.ndim != 2 or prior.shape != logits.shape[1:]:
        raise ValueError(
            f"prior has shape {prior.shape} for logits of shape {logits.shape}: "
            "pass one share per column."
        )
    if not (np.isfinite(prior).all() and (prior > 0).all()):
        raise ValueError(
            f"prior must be above 0 for every class, but is not in column {np.argmin(prior > 0)}: "
            "leave out classes that the training set lacks."
        )
    return logits - tau * np.log(prior / prior.sum())


# %%
def fit_tau(logits: np.ndarray, labels: np.ndarray, prior: np.ndarray) -> float:
    """Return the tau of `logit_adjust` in 0, 0.05 ... 1.5 with the highest macro-F1 here.

    Fit it on the selection set, never on the images that are scored. Of equals the smallest.
    """
    logits, labels = check_scores(logits, labels)
    size = logits.shape[1]
    taus = np.arange(31) / 20
    confusions = np.stack(
        [confusion_matrix(labels, logit_adjust(logits, prior, tau).argmax(1), size) for tau in taus]
    )
    return float(taus[np.argmax(confusion_scores(confusions)["macro_f1"])])


# %% [markdown]
# ## Calibration
# Of the faces answered with 70 % confidence, 70 % should be right. Even a perfectly calibrated
# model misses that a little on a finite set, so the calibration error stands beside the range
# that such a model would show on these same images.


# %%
def reliability(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> dict:
    """Return the expected calibration error and what stands behind it, per confidence bin.

    The 15 bins are (low, high] of equal width over the highest probability of each image. Keys:
    `ece` (0..1), `ece_calibrated_range` [2.5 %, 97.5 %] of the ECE when labels are drawn from the
    probabilities themselves, and the arrays (one value per bin) `edges` (16), `count`,
    `confidence`, `accuracy`, `low`, `high` (where the accuracy of a calibrated model would lie
    with 95 %); the last four are NaN in an empty bin. Source: Guo et al. 2017, section 2
    (https://arxiv.org/abs/1706.04599).
    """
    probabilities, labels = check_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    where = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(where, minlength=BINS)
    hoped = np.bincount(where, confidence, minlength=BINS)
    hits = np.bincount(where, correct, minlength=BINS)

    # Only "was the predicted class drawn?" matters, and its probability is the confidence itself.
    generator = np.random.default_rng(seed)
    order = np.argsort(where, kind="stable")
    filled = np.flatnonzero(count)
    starts = np.concatenate([[0], np.cumsum(count[filled])[:-1]])
    drawn_hits = np.zeros((SIMULATIONS, BINS))
    for first in range(0, SIMULATIONS, 100):
        rows = slice(first, first + 100)
        drawn = generator.random((100, len(labels)), dtype=np.float32)
        drawn_hits[rows, filled] = np.add.reduceat(
            drawn < confidence[order].astype(np.float32), starts, axis=1, dtype=np.float64
        )
    drawn_ece = np.abs(drawn_hits - hoped).sum(axis=1) / len(labels)
    size = np.where(count > 0, count, np.nan)  # nothing is known of an empty bin
    low, high = np.quantile(drawn_hits, [0.025, 0.975], axis=0) / size
    return {
        "ece": float(np.abs(hits - hoped).sum() / len(labels)),
        "ece_calibrated_range": np.quantile(drawn_ece, [0.025, 0.975]).tolist(),
        "edges": edges,
        "count": count,
        "confidence": hoped / size,
        "accuracy": hits / size,
        "low": low,
        "high": high,
    }


# %% [markdown]
# ## Knowing when to stay silent
# Some faces are ambiguous, also to people. A model that may answer "uncertain" trades coverage
# (how many faces it answers) for risk (how many of its answers are wrong).


# %%
def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Return what answering only the most confident images would give, for every threshold.

    Keys: `threshold`, `coverage`, `accuracy`: arrays (T,), one entry per distinct confidence,
    highest first; images with confidence >= threshold are answered. Source: Geifman and El-Yaniv
    2017, "Selective Classification for Deep Neural Networks" (https://arxiv.org/abs/1705.08500).
    """
    probabilities, labels = check_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    hits = np.cumsum((probabilities.argmax(axis=1) == labels)[order])
    answered = np.arange(1, len(labels) + 1)
    # Images of equal confidence are answered together, or the order of the files would matter.
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    return {
        "threshold": confidence[order][last],
        "coverage": answered[last] / len(labels),
        "accuracy": hits[last] / answered[last],
    }


# %%
def abstain_threshold(
    probabilities: np.ndarray, labels: np.ndarray, coverage: float = 0.80
) -> dict[str, float]:
    """Return the confidence threshold that still answers at least `coverage` (0..1] of the images.

    Keys threshold, coverage (reached) and accuracy (of the answered). Choose it on the selection
    set and judge it on the test set with `answered_above`.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage}, but it must be above 0 and at most 1.")
    curve = risk_coverage(probabilities, labels)
    first = int(np.argmax(curve["coverage"] >= coverage - 1e-12))
    return {key: float(curve[key][first]) for key in ("threshold", "coverage", "accuracy")}


# %%
def answered_above(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float
) -> dict[str, float | None]:
    """Return threshold, coverage and accuracy when only confidence >= threshold (0..1) is answered.

    `accuracy` is None when nothing is answered.
    """
    probabilities, labels = check_probabilities(probabilities, labels)
    answered = probabilities.max(axis=1) >= threshold
    right = (probabilities.argmax(axis=1) == labels)[answered]
    return {
        "threshold": float(threshold),
        "coverage": float(answered.mean()),
        "accuracy": float(right.mean()) if right.size else None,
    }


# %% [markdown]
# ## Demo
# A made-up model whose scores are twice as large as they should be. The temperature, fitted on one
# half of the images, repairs the other half.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.calibration import abstain_threshold, answered_above, fit_temperature
# from fer_helpers.calibration import reliability, softmax
#
# generator = np.random.default_rng(0)
# honest = 2 * generator.normal(size=(4000, 7))
# labels = (softmax(honest).cumsum(axis=1) < generator.random((4000, 1))).sum(axis=1)
# logits = 2 * honest
# temperature = fit_temperature(logits[:2000], labels[:2000])
# for t in (1.0, temperature):
#     found = reliability(softmax(logits[2000:], t), labels[2000:])
#     low, high = found["ece_calibrated_range"]
#     print(f"temperature {t:.1f}: ECE {found['ece']:.3f}, calibrated {low:.3f} to {high:.3f}")

# %% tags=["active-ipynb"]
# chosen = abstain_threshold(softmax(logits[:2000], temperature), labels[:2000], coverage=0.8)
# reached = answered_above(softmax(logits[2000:], temperature), labels[2000:], chosen["threshold"])
# print(f"answer above {chosen['threshold']:.2f}: {100 * reached['coverage']:.0f} % of the images, "
#       f"{100 * reached['accuracy']:.1f} % of these right")
