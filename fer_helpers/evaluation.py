# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluation: from scores to numbers that survive a reviewer
# A network gives one score per class and face. This module turns those scores and the labels into
# numbers, and says how far each can be trusted: an interval, a calibration check, a test against
# another model. Arrays go in, plain dictionaries come out (those of `evaluate` ready for a JSON
# file); no network, no picture and no file is needed here.

# %%
"""Turn scores and labels into metrics, intervals and tests: arrays in, numbers out."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special, stats

from fer_helpers.calibration import (
    abstain_threshold,
    answered_above,
    check_scores,
    fit_tau,
    fit_temperature,
    logit_adjust,
    reliability,
    risk_coverage,
    softmax,
)
from fer_helpers.confusions import (
    check_names,
    class_scores,
    confusion_matrix,
    confusion_scores,
    report_text,
    top_confusions,
)
from fer_helpers.independence import chi_square, chi_square_text

# One address for every number about a model's answers, wherever it is written.
__all__ = [
    "abstain_threshold",
    "answered_above",
    "bootstrap_intervals",
    "chi_square",
    "chi_square_text",
    "class_scores",
    "compare",
    "confusion_matrix",
    "confusion_scores",
    "evaluate",
    "fit_tau",
    "fit_temperature",
    "logit_adjust",
    "mcnemar",
    "p_text",
    "reliability",
    "report_text",
    "risk_coverage",
    "scores_text",
    "seeds_summary",
    "softmax",
    "top_confusions",
]

# %% [markdown]
# ## Intervals
# How far would a number move if other faces had been photographed? Drawing the test set again and
# again from itself answers that.


# %%
def bootstrap_intervals(
    confusion: np.ndarray, *, repeats: int = 10_000, seed: int = 0
) -> dict[str, list[float] | None]:
    """Return 95 % percentile intervals [low, high] of the four `confusion_scores`.

    Drawing N images with replacement is the same as drawing the K x K counts from a multinomial
    distribution, so no image is touched. Source: Efron and Tibshirani 1993, chapter 13.

    Two cases in which the drawn sets do not say how sure a number is are treated apart. Where all
    answers are right, or none is, so they are in every draw: the interval of the accuracy is
    Wilson's (Wilson 1927), and the other scores have none (None). And a draw that lacks a class
    would average over fewer than this set does: balanced accuracy leaves out draws without any
    image of a class that has some here, macro-F1 those in which a class neither occurs nor is
    answered that does here, unless fewer than a tenth would remain.
    """
    confusion = np.asarray(confusion)
    total, hits = int(confusion.sum()), int(np.trace(confusion))
    if hits in (0, total):
        bounds = stats.binomtest(hits, total).proportion_ci(method="wilson")
        known = {"accuracy": [float(bounds.low), float(bounds.high)]}
        return dict.fromkeys(confusion_scores(confusion)) | known
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(total, confusion.ravel() / total, size=repeats)
    drawn = drawn.reshape(repeats, *confusion.shape)
    scores = confusion_scores(drawn)
    for name, images in (
        ("balanced_accuracy", lambda counts: counts.sum(axis=-1)),
        ("macro_f1", lambda counts: counts.sum(axis=-1) + counts.sum(axis=-2)),
    ):
        complete = (images(drawn)[:, images(confusion) > 0] > 0).all(axis=1)
        if complete.mean() >= 0.1:
            scores[name] = scores[name][complete]
    return {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in scores.items()}


def _probability_scores(
    logits: np.ndarray, labels: np.ndarray, temperature: float, seed: int
) -> dict:
    probabilities = softmax(logits, temperature)
    rows = np.arange(len(labels))
    scaled = logits / temperature
    truth = np.eye(logits.shape[1])[labels]
    calibration = reliability(probabilities, labels, seed=seed)
    return {
        "nll": float(np.mean(special.logsumexp(scaled, axis=1) - scaled[rows, labels])),
        "brier": float(np.mean(((probabilities - truth) ** 2).sum(axis=1))),
        "ece": calibration["ece"],
        "ece_calibrated_range": calibration["ece_calibrated_range"],
    }


# %% [markdown]
# ## Everything at once
# `evaluate` is what the notebook calls. Given only the images that do not also stand in the
# training set, it returns the leak-free twin of each number.


# %%
def evaluate(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    temperature: float = 1.0,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> dict:
    """Score logits (N, K), or log-probabilities, against labels (N,) in 0..K-1.

    Returns a JSON-able dict. All shares are 0..1, intervals are those of `bootstrap_intervals`,
    95 %, [low, high] (None with `bootstrap=0`; where all are right, or none is, only accuracy has
    one): n, accuracy, top2_accuracy, macro_f1, balanced_accuracy, kappa, and an `..._interval` for
    accuracy, macro_f1, balanced_accuracy and kappa; nll (nats per image), brier (sum over classes,
    0..2), ece, ece_calibrated_range, all after dividing by `temperature`; before_temperature with
    the same four at temperature 1; per_class {name: {precision, recall, f1, support, predicted}};
    confusion (K x K counts, row = truth); never_predicted and absent (names with no prediction,
    with no image).

    Equal scores go to the class that stands first. Raises ValueError for bad input.
    """
    names = check_names(class_names)
    logits, labels = check_scores(logits, labels, len(names))
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    earlier = np.arange(len(names)) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)

    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(names))
    scores = {name: float(value) for name, value in confusion_scores(confusion).items()}
    intervals = (
        bootstrap_intervals(confusion, repeats=bootstrap, seed=seed)
        if bootstrap
        else dict.fromkeys(scores)
    )
    each = class_scores(confusion)
    result: dict = {"n": len(labels)}
    for name, value in scores.items():
        result[name] = value
        result[f"{name}_interval"] = intervals[name]
        if name == "accuracy":
            result["top2_accuracy"] = float((rank < 2).mean())
    result["temperature"] = float(temperature)
    result.update(_probability_scores(logits, labels, temperature, seed))
    result["before_temperature"] = _probability_scores(logits, labels, 1.0, seed)
    result["per_class"] = {
        name: {key: values[k].item() for key, values in each.items()}
        for k, name in enumerate(names)
    }
    result["confusion"] = confusion.tolist()
    result["never_predicted"] = [n for n, c in zip(names, each["predicted"], strict=True) if c == 0]
    result["absent"] = [n for n, c in zip(names, each["support"], strict=True) if c == 0]
    return result


# %%
def scores_text(result: Mapping, title: str = "") -> str:
    """Return the numbers of `evaluate` as aligned lines for people."""

    def line(name: str, key: str, percent: bool = True) -> str:
        shown = f"{100 * result[key]:6.2f} %" if percent else f"{result[key]:6.3f}  "
        interval = result.get(f"{key}_interval")
        if interval:
            low, high = (f"{100 * v:.2f}" if percent else f"{v:.3f}" for v in interval)
            shown += f"   95 % interval {low} to {high}"
        return f"{name:<18} {shown}"

    before = result["before_temperature"]
    low, high = result["ece_calibrated_range"]
    images = f"{result['n']:,} images"
    lines = [
        f"{title}: {images}" if title else images,
        line("accuracy", "accuracy"),
        line("top-2 accuracy", "top2_accuracy"),
        line("balanced accuracy", "balanced_accuracy"),
        line("macro-F1", "macro_f1", percent=False),
        line("Cohen's kappa", "kappa", percent=False),
        f"{'NLL':<18} {result['nll']:6.3f}     before temperature {before['nll']:.3f}",
        f"{'Brier':<18} {result['brier']:6.3f}     before temperature {before['brier']:.3f}",
        f"{'ECE':<18} {100 * result['ece']:6.2f} %   before temperature "
        f"{100 * before['ece']:.2f} %",
        f"{'':<18}            a calibrated model would show {100 * low:.2f} to {100 * high:.2f} %",
    ]
    if result["never_predicted"]:
        lines.append(f"{'never predicted':<18} {', '.join(result['never_predicted'])}")
    if result["absent"]:
        lines.append(f"{'no image of':<18} {', '.join(result['absent'])}")
    return "\n".join(lines)


# %% [markdown]
# ## Two models, several seeds
# Two networks answer the same images, so the question is not whether their intervals overlap but
# who is right where the other is wrong. And one seed is an anecdote: three or more give a mean
# and a spread.


# %%
def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict:
    """Compare two models on the same images: bool (N,) each, True where the model is right.

    Returns only_a, only_b (images that only one is right on), difference (accuracy a - b), p_value
    (exact binomial on these images; 1.0 when there are none). Source: McNemar 1947.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0 or a.dtype != bool or b.dtype != bool:
        raise ValueError(
            f"correct_a is {a.dtype} {a.shape} and correct_b is {b.dtype} {b.shape}, but both must "
            "be bool (N,) over the same images."
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    return {
        "only_a": only_a,
        "only_b": only_b,
        "difference": (only_a - only_b) / len(a),
        "p_value": float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0,
    }


# %%
def compare(correct_a: np.ndarray, correct_b: np.ndarray, *, bootstrap: int = 10_000) -> dict:
    """Return what `mcnemar` does, and `interval`, the 95 % one [low, high] of `difference`.

    The bootstrap is paired: both models see the same drawn images, so what is hard for both
    cancels out. The images that only one is right on say it all, so that three counts are drawn
    and no image is touched. Where these are all won by one model, no draw goes against it, and four
    of them would leave out 0: below six (where p passes 0.05) the interval is None. So it is where
    every draw would be the same.
    """
    result = mcnemar(correct_a, correct_b)
    size, only = len(correct_a), (result["only_a"], result["only_b"])
    counts = np.array([*only, size - sum(only)])
    if counts.max() == size or (0 in only and sum(only) < 6):
        return {**result, "interval": None}
    drawn = np.random.default_rng(0).multinomial(size, counts / size, size=bootstrap)
    gains = (drawn[:, 0] - drawn[:, 1]) / size
    return {**result, "interval": np.quantile(gains, [0.025, 0.975]).tolist()}


# %%
def p_text(p_value: float) -> str:
    """Return a p value with three decimals; below 0.001 only that it is (it is never 0)."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


# %%
def seeds_summary(values: Sequence[float]) -> dict:
    """Return n, mean, sd (over n - 1), low and high of one score over several seeds.

    `low` and `high` bound the 95 % t interval of the mean; with one value they and sd are None.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError("seeds_summary needs at least one finite number per seed, as a flat list.")
    mean = float(values.mean())
    result = {"n": len(values), "mean": mean, "sd": None, "low": None, "high": None}
    if len(values) > 1:
        result["sd"] = float(values.std(ddof=1))
        reach = float(stats.t.ppf(0.975, len(values) - 1) * result["sd"] / np.sqrt(len(values)))
        result["low"], result["high"] = mean - reach, mean + reach
    return result


# %% [markdown]
# ## Demo
# The confusion matrix that the original notebook printed (7,178 faces of FER2013, both test
# halves pooled). Its numbers come back from the counts alone, now with intervals.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.evaluation import bootstrap_intervals, confusion_scores, evaluate
# from fer_helpers.evaluation import fit_temperature, scores_text
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
# intervals = bootstrap_intervals(original)
# for name, value in confusion_scores(original).items():
#     low, high = intervals[name]
#     print(f"{name:<18} {value:.3f}   95 % interval {low:.3f} to {high:.3f}")

# %% [markdown]
# An overconfident made-up model: its scores are twice as large as they should be, and the fitted
# temperature says so.

# %% tags=["active-ipynb"]
# generator = np.random.default_rng(0)
# honest = generator.normal(size=(4000, 7)) * 2
# chances = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
# labels = (chances.cumsum(axis=1) < generator.random((4000, 1))).sum(axis=1)
# logits = 2 * honest
# temperature = fit_temperature(logits[:2000], labels[:2000])
# print(f"temperature fitted on the first half: {temperature:.1f}")
# result = evaluate(logits[2000:], labels[2000:], names, temperature=temperature)
# print(scores_text(result, "second half"))
