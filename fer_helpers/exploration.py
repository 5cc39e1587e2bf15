# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exploration: which faces to look at
#
# A score says how often a model is wrong; looking at faces says how. These functions choose the
# faces: a cell of the confusion matrix, the most confident mistakes, the labels that ten human
# raters dispute, the neighborhoods of an embedding.

# %%
"""Choose the faces worth looking at, and compare labels with human votes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage, stats
from sklearn.manifold import TSNE
from sklearn.metrics import average_precision_score, precision_recall_curve
from threadpoolctl import threadpool_limits

from fer_helpers.calibration import check_probabilities
from fer_helpers.confusions import check_labels, check_names

# %% [markdown]
# ## Faces by truth, answer and confidence


# %%
def pick_faces(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    truth: int | None = None,
    prediction: int | None = None,
    how: str = "random",
    seed: int = 0,
) -> np.ndarray:
    """Return the positions, int64, of up to six faces.

    With neither `truth` nor `prediction` (class numbers) only mistakes are chosen; with either, all
    faces of that cell, row or column. `how`: "random" (seeded, in file order) or "confident" (most
    confident first).
    """
    probabilities, labels = check_probabilities(probabilities, labels)
    if how not in ("random", "confident"):
        raise ValueError(f"how is {how!r}, but it must be 'random' or 'confident'.")
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    chosen = np.ones(len(labels), dtype=bool)
    if truth is None and prediction is None:
        chosen = predicted != labels
    if truth is not None:
        chosen &= labels == truth
    if prediction is not None:
        chosen &= predicted == prediction
    found = np.flatnonzero(chosen)
    if how == "confident":
        return found[np.argsort(-confidence[found], kind="stable")[:6]]
    return np.sort(np.random.default_rng(seed).permutation(found)[:6])


# %% [markdown]
# ## Each class against the rest


# %%
def precision_recall(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, dict]:
    """Return {name: {precision, recall (arrays), average_precision}} of one-against-rest.

    Classes without an image are left out. Source: scikit-learn's precision_recall_curve.
    """
    names = check_names(class_names)
    probabilities, labels = check_probabilities(probabilities, labels, len(names))
    curves = {}
    for k in np.unique(labels):
        precision, recall, _ = precision_recall_curve(labels == k, probabilities[:, k])
        curves[names[k]] = {
            "precision": precision,
            "recall": recall,
            "average_precision": float(average_precision_score(labels == k, probabilities[:, k])),
        }
    return curves


# %% [markdown]
# ## Blurred faces, small faces
# One accuracy hides where a model fails. Without any other label, a picture itself tells how large
# it is and how sharp: where gray values change abruptly, its Laplacian is large. Noise and contrast
# raise it too, so a low value is a sign of blur and no measurement of it.


# %%
def sharpness(images: Iterable[np.ndarray]) -> np.ndarray:
    """Return the variance of the Laplacian, float64 (N,), of N faces uint8 (H, W, C).

    In squared grey levels, 0 for a blank picture. Source: Pech-Pacheco et al. 2000, "Diatom
    autofocusing in brightfield microscopy: a comparative study".
    """
    grey = (np.mean(image, axis=2, dtype=np.float32) for image in images)
    return np.array([ndimage.laplace(face).var(dtype=np.float64) for face in grey])


# %%
def accuracy_by_third(correct: np.ndarray, values: np.ndarray) -> list[dict]:
    """Return the accuracy of the faces with low, middle and high `values`, both (N,).

    Each part is {name, n, low, high (of its values), accuracy (0..1), accuracy_interval (95 %,
    Wilson 1927)}. Equal values are never parted: where many faces share one, parts differ in size
    or are missing.
    """
    correct, values = np.asarray(correct, dtype=bool), np.asarray(values, dtype=np.float64)
    if correct.shape != values.shape or correct.ndim != 1:
        raise ValueError(f"there are {values.shape} values for {correct.shape} answers: pass both.")
    # A face belongs to the third that the middle of its equals falls into.
    third = (3 * (stats.rankdata(values) - 0.5) / max(len(values), 1)).astype(int)
    parts = []
    for k in np.unique(third):
        right, inside = correct[third == k], values[third == k]
        interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        parts.append(
            {
                "name": ("low", "middle", "high")[k],
                "n": len(right),
                "low": float(inside.min()),
                "high": float(inside.max()),
                "accuracy": float(right.mean()),
                "accuracy_interval": [float(interval.low), float(interval.high)],
            }
        )
    return parts


# %%
def slices(
    correct: np.ndarray, images: Iterable[np.ndarray], native: Sequence[str] = ()
) -> dict[str, list[dict]]:
    """Return `accuracy_by_third` by sharpness and, where sizes are known, by size in the file.

    `correct` is bool (N,), `images` N faces uint8 (H, W, C), `native` (N,) holds mode and size in
    each file ("L 48x48"), of which the shorter side counts in pixels.
    """
    parts = {"sharpness": accuracy_by_third(correct, sharpness(images))}
    if len(native) and all(native):
        sides = [min(map(int, size.split()[-1].split("x"))) for size in native]
        parts["size"] = accuracy_by_third(correct, sides)
    return parts


# %%
def slices_text(parts: Mapping[str, Sequence[Mapping]]) -> str:
    """Return the answer of `slices` as an aligned table for people."""
    lines = [f"{'':<34}{'faces':>7}{'right':>9}   95 % interval"]
    for kind, rows in parts.items():
        for row in rows:
            low, high = (f"{100 * end:.1f}" for end in row["accuracy_interval"])
            name = f"{kind} {slice_name(row)}"
            lines.append(
                f"{name:<34}{row['n']:>7,}{100 * row['accuracy']:>7.1f} %   {low} to {high}"
            )
    return "\n".join(lines)


def slice_name(row: Mapping) -> str:
    """Name one part of `accuracy_by_third`: "low (14 to 310)", or only "48" for a single value."""
    low, high = f"{row['low']:,.0f}", f"{row['high']:,.0f}"
    return low if row["low"] == row["high"] else f"{row['name']} ({low} to {high})"


# %% [markdown]
# ## A map of what the network sees
# The features before the last layer have hundreds of dimensions; t-SNE lays them out so that
# neighbors stay neighbors. Distances between far groups and the size of groups mean nothing.


# %%
def embedding_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return t-SNE points float32 (N, 2) of features (N, F).

    Time grows with their number: a thousand take some seconds. Source: van der Maaten and Hinton
    2008, through scikit-learn.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 5 or not np.isfinite(features).all():
        raise ValueError(
            f"features have shape {features.shape}, but at least 5 rows of finite numbers (N, F) "
            "are needed."
        )
    # A dead network's features are all alike or nearly so: their squares vanish, and no principal
    # component is left. Those of a diverged one overflow when squared. From the NaN of either,
    # scikit-learn would crash the interpreter.
    features = features / max(1, np.abs(features).max() / 1e6)
    spread = np.ptp(features, axis=0)
    start = "pca" if len(spread) > 1 and spread.max() > 1e-15 else "random"
    perplexity = min(30, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start, random_state=seed)
    # Threads add up in another order, so the map would depend on how many a machine has. And where
    # others compute too they wait for each other most of the time.
    with threadpool_limits(1):
        return tsne.fit_transform(features)


# %% [markdown]
# ## What ten people said
# FER+ asked ten raters about every face of FER2013. Where they agree with each other and not with
# the label, the label is the suspect; where they are split, no model can be sure.


# %%
def vote_agreement(
    predicted: np.ndarray,
    labels: np.ndarray,
    votes: np.ndarray,
    vote_names: Sequence[str],
    class_names: Sequence[str],
) -> dict:
    """Compare predictions and labels, both (N,), with the votes (N, V) of people on the same faces.

    `vote_names` (V,) hold every class name and perhaps more ("Contempt", "unknown", "NF" for "not a
    face"). A face counts when one choice has more votes than every other; `tied` and `unrated`
    faces are counted apart. Shares are 0..1 (None over no face):
    n, tied, unrated, label_agrees, prediction_agrees (with the winning choice), prediction_right
    (with the label), and the rows of per_class ({name, n, ...} by label) and by_clarity ({name, n,
    ...} by the share of the winner: above 0.8, above 0.5, the rest).
    """
    names = check_names(class_names)
    columns = _vote_columns(vote_names, names)
    labels = check_labels(labels, len(names))
    predicted = check_labels(predicted, len(names), "predicted")
    share, winner, rated, clear = _winners(votes, len(labels), len(vote_names))
    if len(predicted) != len(labels):
        raise ValueError(f"there are {len(predicted)} predictions for {len(labels)} labels.")
    agreements = {
        "label_agrees": columns[labels] == winner,
        "prediction_agrees": columns[predicted] == winner,
        "prediction_right": predicted == labels,
    }

    def row(chosen: np.ndarray) -> dict:
        n = int(chosen.sum())
        shares = {k: float(v[chosen].mean()) if n else None for k, v in agreements.items()}
        return {"n": n, **shares}

    top = share.max(axis=1)
    steps = (
        ("clear (over 80 % of the votes)", top > 0.8),
        ("majority (over 50 %)", (top > 0.5) & (top <= 0.8)),
        ("split", top <= 0.5),
    )
    return {
        **row(clear),
        "tied": int((rated & ~clear).sum()),
        "unrated": int((~rated).sum()),
        "per_class": [{"name": n, **row(clear & (labels == k))} for k, n in enumerate(names)],
        "by_clarity": [{"name": name, **row(clear & chosen)} for name, chosen in steps],
    }


# %%
def label_suspects(
    probabilities: np.ndarray,
    labels: np.ndarray,
    votes: np.ndarray,
    vote_names: Sequence[str],
    class_names: Sequence[str],
) -> list[dict]:
    """Return the twelve faces, or fewer, whose label people dispute most, worst first.

    A suspect is a face whose winning vote is not its label, ordered by how far the winner leads
    the label, then by the model's probability for the winner. Each is {position, label, votes_say,
    votes_for_label, votes_for_winner (shares 0..1), predicted, confidence (0..1)}.
    """
    names = check_names(class_names)
    probabilities, labels = check_probabilities(probabilities, labels, len(names))
    columns = _vote_columns(vote_names, names)
    share, winner, _, clear = _winners(votes, len(labels), len(vote_names))
    rows = np.arange(len(labels))
    for_winner, for_label = share[rows, winner], share[rows, columns[labels]]
    known = np.zeros((len(labels), len(vote_names)))
    known[:, columns] = probabilities
    suspects = np.flatnonzero(clear & (winner != columns[labels]))
    lead, belief = for_winner - for_label, known[rows, winner]
    order = np.lexsort((suspects, -belief[suspects], -lead[suspects]))
    return [
        {
            "position": int(i),
            "label": names[labels[i]],
            "votes_say": str(vote_names[winner[i]]),
            "votes_for_label": float(for_label[i]),
            "votes_for_winner": float(for_winner[i]),
            "predicted": names[probabilities[i].argmax()],
            "confidence": float(probabilities[i].max()),
        }
        for i in suspects[order][:12]
    ]


def _vote_columns(vote_names: Sequence[str], names: tuple[str, ...]) -> np.ndarray:
    missing = [name for name in names if name not in vote_names]
    if missing:
        raise ValueError(f"the votes have no column for {missing[0]}: pass its name in vote_names.")
    return np.array([list(vote_names).index(name) for name in names])


def _winners(votes: np.ndarray, faces: int, choices: int) -> tuple[np.ndarray, ...]:
    """Per face: shares of the votes, the winner, whether there are votes, whether it won alone."""
    votes = np.asarray(votes)
    if votes.shape != (faces, choices) or (votes < 0).any():
        raise ValueError(
            f"votes have shape {votes.shape}, but counts from 0 of shape ({faces}, {choices}) are "
            "needed."
        )
    most = votes.max(axis=1, keepdims=True)
    rated = most[:, 0] > 0
    share = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    return share, votes.argmax(axis=1), rated, rated & ((votes == most).sum(axis=1) == 1)


# %%
def votes_text(result: Mapping) -> str:
    """Return the answer of `vote_agreement` as an aligned table for people."""
    lines = [f"{'':<32}{'faces':>7}{'label':>9}{'model':>9}{'model is':>10}",
             f"{'':<32}{'':>7}{'= votes':>9}{'= votes':>9}{'= label':>10}"]  # fmt: skip
    rows = [{"name": "all", **result}, *result["by_clarity"], *result["per_class"]]
    for row in rows:
        cells = (row["label_agrees"], row["prediction_agrees"], row["prediction_right"])
        shown = ["–" if cell is None else f"{100 * cell:.1f} %" for cell in cells]
        lines.append(f"{row['name']:<32}{row['n']:>7,}{shown[0]:>9}{shown[1]:>9}{shown[2]:>10}")
    lines.append(f"left out: {result['tied']:,} with tied votes, {result['unrated']:,} unrated")
    return "\n".join(lines)


# %% [markdown]
# ## Demo
# Made-up answers and votes: the votes were drawn from the same chances as the labels, so label and
# votes disagree where a face is ambiguous.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.calibration import softmax
# from fer_helpers.exploration import pick_faces, vote_agreement, votes_text
#
# names = ("Anger", "Happy", "Sad")
# generator = np.random.default_rng(0)
# scores = 1.5 * generator.normal(size=(600, 3))
# chances = softmax(scores)
# labels = np.array([generator.choice(3, p=p) for p in chances])
# votes = np.array([generator.multinomial(10, p) for p in chances])
# print(votes_text(vote_agreement(scores.argmax(axis=1), labels, votes, names, names)))

# %% tags=["active-ipynb"]
# print("most confident mistakes:", pick_faces(chances, labels, how="confident"))
# print("true Anger, called Happy:", pick_faces(chances, labels, truth=0, prediction=1))
