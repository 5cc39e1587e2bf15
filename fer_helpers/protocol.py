# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Protocol: what is chosen on what, and scored once
#
# Most published FER2013 numbers score the images that something was chosen on. Here a model is
# scored in one place, below: the temperature comes from the selection set, each test set is passed
# through once for each number of views (the pool holds both halves), and every number in the tables
# of scores leaves with a stamp that says what it is and with its *leak-free twin*, the same number
# without the test images that also stand in train.

# %%
"""Score a trained model on its test sets: stamped numbers with intervals and leak-free twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fer_helpers.evaluation import evaluate, fit_tau, fit_temperature, logit_adjust
from fer_helpers.inference import predict_logits
from fer_helpers.models import EmotionNet
from fer_helpers.preprocess import Preprocess
from fer_helpers.records import scored, stamp
from fer_helpers.splits import SelectionSet, Splits, TestSet

# %% [markdown]
# ## One test set
#
# Two scores: the picture alone, and the mean over several deterministic views.


# %%
@dataclass(frozen=True)
class Scored:
    """A test set with what the model said about it.

    `logits` is float32 (N, K) for one view; `entries` holds one entry of `metrics["results"]` for
    one view and, if there were more views, one for all of them.
    """

    test: TestSet
    logits: np.ndarray
    entries: tuple[dict[str, Any], ...]

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers for one view."""
        return self.entries[0]["numbers"]

    @property
    def temperatures(self) -> dict[str, float]:
        """The temperature for every number of views above 1, as a model file keeps them."""
        return {str(e["stamp"]["views"]): e["numbers"]["temperature"] for e in self.entries[1:]}


def describe_selection(selection: SelectionSet | None) -> str:
    """What choices were made on, in words for a stamp: `"FER2013 PublicTest (3,589)"`."""
    if selection is None:
        return "none"
    return f"{selection.dataset} {selection.split} ({len(selection):,})"


def score_tests(
    model: EmotionNet,
    splits: Splits,
    preprocess: Preprocess,
    *,
    views: int = 10,
    bootstrap: int = 10_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    note: str = "",
) -> tuple[list[Scored], float, np.ndarray | None]:
    """Score every test set of `splits`, the headline first.

    Args:
        model: the trained model, on `device`.
        splits: its data; the temperatures are fitted on `splits.selection`.
        preprocess: what the model was trained with.
        views: how many of the ten views the second score averages; 1 for no second score.
        bootstrap: draws behind each 95 % interval.
        seed: of the run; the bootstrap uses it too.
        device: where the model is.
        precision: fp32, bf16 or fp16.
        note: what else a reader must know, such as "training was stopped early".

    Returns:
        one `Scored` per test set; the temperature for one view (1 without a selection set); and
        the logits of the selection set for one view, for further choices (None without one).
    """

    def logits_of(faces: SelectionSet | TestSet, count: int) -> np.ndarray:
        return predict_logits(
            model, faces, preprocess, device=device, precision=precision, views=count
        )

    counts = (1, views) if views > 1 else (1,)
    temperature, chosen_on = dict.fromkeys(counts, 1.0), dict.fromkeys(counts)
    if splits.selection is not None:
        for count in counts:
            chosen_on[count] = logits_of(splits.selection, count)
            temperature[count] = fit_temperature(chosen_on[count], splits.selection.labels)
    results = []
    for position, test in enumerate(splits.tests):
        entries, first = [], None
        for count in counts:
            logits = logits_of(test, count)
            first = logits if first is None else first
            about = stamp(
                test.split, len(test), count, seed, describe_selection(splits.selection),
                test.content_hash, test.origin, dataset=test.dataset,
                device=torch.device(device).type, precision=precision,
                note="; ".join(part for part in (test.stamp, note) if part),
            )  # fmt: skip
            headline = position == 0 and count == 1
            entries.append(_entry(about, logits, test, temperature[count], bootstrap, headline))
        results.append(Scored(test, first, tuple(entries)))
    return results, temperature[1], chosen_on[1]


def _entry(
    about: dict[str, Any],
    logits: np.ndarray,
    test: TestSet,
    temperature: float,
    bootstrap: int,
    headline: bool,
) -> dict[str, Any]:
    """The numbers of these logits and their leak-free twin, under the stamp `about`."""
    arguments = {"temperature": temperature, "bootstrap": bootstrap, "seed": about["seed"]}
    numbers = evaluate(logits, test.labels, test.class_names, **arguments)
    free, twin = test.leak_free, None
    if free.any():
        twin = evaluate(logits[free], test.labels[free], test.class_names, **arguments)
    return scored(about, numbers, leak_free=twin, headline=headline)


# %% [markdown]
# ## The other operating point
#
# A network that learned from many happy and few disgusted faces leans towards the frequent answer.
# That is right as long as only the share of right answers counts. Taking a part of the logarithms
# of the class shares off the logits gives a second way to read the very same network, which finds
# more of the rare classes and is right a little less often.


# %%
def balance(
    score: Scored, splits: Splits, selection_logits: np.ndarray | None, *, bootstrap: int = 10_000
) -> tuple[Scored, list[float]]:
    """Read one score again at the balanced operating point (Menon et al. 2021, post hoc).

    Args:
        score: what `score_tests` gave for a test set.
        splits: the same; how strongly to adjust is chosen on `splits.selection` by macro-F1.
        selection_logits: what `score_tests` gave for that, (N, K).
        bootstrap: draws behind each 95 % interval.

    Returns:
        the score, and what is added to the logits for it: -tau x log(class share), (K,).

    Raises:
        ValueError: there is no selection set to choose on.
    """
    if selection_logits is None:
        raise ValueError("The balanced point is chosen on a selection set: set SELECTION_SIZE.")
    prior = splits.train.counts()
    tau = fit_tau(selection_logits, splits.selection.labels, prior)
    logits = logit_adjust(score.logits, prior, tau)
    first = score.entries[0]["stamp"]
    note = f"balanced operating point, tau {tau:.2f}"
    about = {**first, "note": f"{first['note']}; {note}" if first["note"] else note}
    temperature = score.numbers["temperature"]
    entry = _entry(about, logits, score.test, temperature, bootstrap, headline=False)
    shift = logit_adjust(np.zeros((1, len(prior))), prior, tau)[0]
    return Scored(score.test, logits, (entry,)), shift.tolist()


def points_table(accurate: Scored, balanced: Scored) -> pd.DataFrame:
    """Both operating points, a row each, one view of the same set.

    Accuracies and the recall of every class are percent, macro-F1 is 0..1; a class without an image
    has no recall. *Interval* and *leak-free* are the accuracy's, as in `score_table`.
    """
    rows = {}
    tau = balanced.entries[0]["stamp"]["note"].rpartition(", ")[2]
    for name, score in (("as trained", accurate), (f"balanced, {tau}", balanced)):
        numbers, known = score.numbers, score_table([score]).iloc[0]
        rows[name] = {
            "set": known["set"],
            "n": known["n"],
            "accuracy": known["accuracy"],
            "95 % interval": known["95 % interval"],
            "leak-free accuracy": known["leak-free accuracy"],
            "balanced accuracy": round(100 * numbers["balanced_accuracy"], 1),
            "macro-F1": round(numbers["macro_f1"], 3),
        } | {
            f"{k} recall": round(100 * v["recall"], 1) if v["support"] else np.nan
            for k, v in numbers["per_class"].items()
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# %% [markdown]
# ## All of them in one table


# %%
def score_table(results: Sequence[Scored]) -> pd.DataFrame:
    """One row per score: what it was taken on, accuracy with its interval, and its twin.

    Accuracies are percent of images, macro-F1 is 0..1; the interval is the 95 % one of
    `evaluation.bootstrap_intervals`.
    """
    rows = []
    for entry in (entry for result in results for entry in result.entries):
        about, numbers, twin = entry["stamp"], entry["numbers"], entry["leak_free"]
        interval = numbers["accuracy_interval"]
        rows.append(
            {
                "set": f"{about['dataset']} {about['split']}",
                "views": about["views"],
                "n": numbers["n"],
                "accuracy": round(100 * numbers["accuracy"], 2),
                "95 % interval": " to ".join(f"{100 * end:.2f}" for end in interval or ()),
                "macro-F1": round(numbers["macro_f1"], 3),
                "leak-free n": twin["n"] if twin else 0,
                "leak-free accuracy": round(100 * twin["accuracy"], 2) if twin else np.nan,
                "note": ", ".join(
                    part
                    for part in (
                        "headline" if entry["headline"] else "",
                        about["note"],
                        "drawn faces" if about["origin"] == "drawn" else "",
                    )
                    if part
                ),
            }
        )
    return pd.DataFrame(rows)


# %% [markdown]
# ## Demo
#
# An untrained network scores at chance, and its interval says so.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.data import load_fer2013
# from fer_helpers.demo_faces import write_demo_faces
# from fer_helpers.models import build_model
#
# with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # mapped on Windows
#     drawn = write_demo_faces(f"{folder}/drawn", per_class=10) / "fer2013"
#     splits = load_fer2013(drawn / "train", drawn / "test", cache_dir=folder, max_bad_share=0.1)
#     torch.manual_seed(0)
#     model = build_model(7, stem="small2", width=16, channels=1)
#     preprocess = Preprocess(size=48, channels=1, grey=True)
#     results, _, _ = score_tests(model, splits, preprocess, views=2, bootstrap=1000)
# score_table(results)
