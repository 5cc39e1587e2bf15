"""Choosing faces, vote agreement and suspects by hand."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from fer_helpers.exploration import (
    accuracy_by_third,
    embedding_map,
    label_suspects,
    pick_faces,
    precision_recall,
    sharpness,
    slices,
    slices_text,
    vote_agreement,
    votes_text,
)

NAMES = ("Anger", "Happy")
VOTES = ("Happy", "Anger", "NF")
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.55, 0.45]])
LABELS = np.array([0, 0, 1, 0, 0])


def test_pick_faces():
    assert pick_faces(PROBABILITIES, LABELS).tolist() == [1, 2, 3]
    turned = PROBABILITIES[[3, 2, 1]], LABELS[[3, 2, 1]]  # the surest mistake stands last
    assert pick_faces(*turned, how="confident").tolist() == [2, 1, 0]
    assert pick_faces(PROBABILITIES, LABELS, truth=0, prediction=0).tolist() == [0, 4]
    assert pick_faces(PROBABILITIES, LABELS, truth=1).tolist() == [2]
    assert pick_faces(PROBABILITIES, LABELS, truth=1, prediction=1).tolist() == []
    many = np.tile(PROBABILITIES, (4, 1)), np.tile(LABELS, 4)  # twelve mistakes
    few = pick_faces(*many)
    assert len(few) == 6
    np.testing.assert_array_equal(few, pick_faces(*many))
    with pytest.raises(ValueError, match="'random' or 'confident'"):
        pick_faces(PROBABILITIES, LABELS, how="best")


def test_precision_recall_leaves_absent_classes_out():
    curves = precision_recall(PROBABILITIES, np.zeros(5, int), NAMES)
    assert list(curves) == ["Anger"]
    curves = precision_recall(PROBABILITIES, LABELS, NAMES)
    assert curves["Happy"]["average_precision"] == pytest.approx(
        average_precision_score(LABELS == 1, PROBABILITIES[:, 1])
    )


def test_sharpness_falls_with_blur_and_is_the_formula():
    faces = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 1), dtype=np.uint8)
    faces[1, ..., 0] = ndimage.gaussian_filter(faces[0, ..., 0], 1)
    faces[2] = 77
    sharp = sharpness(faces)
    padded = np.pad(faces[0, ..., 0].astype(float), 1, mode="symmetric")
    laplacian = [
        padded[i - 1, j] + padded[i + 1, j] + padded[i, j - 1] + padded[i, j + 1] - 4 * padded[i, j]
        for i, j in np.ndindex(11, 11)
        if 0 < i < 10 and 0 < j < 10
    ]
    assert sharp[0] == pytest.approx(np.var(laplacian), rel=1e-5)
    assert sharp[0] > 3 * sharp[1] > sharp[2] == 0
    np.testing.assert_array_equal(sharp, sharpness(np.repeat(faces, 3, axis=3)))


def test_thirds_by_hand():
    correct = np.array([1, 0, 1, 1, 0, 0], dtype=bool)
    low, middle, high = accuracy_by_third(correct, [1, 2, 30, 40, 500, 600])
    assert [part["accuracy"] for part in (low, middle, high)] == [0.5, 1.0, 0.0]
    assert (middle["name"], middle["n"], middle["low"], middle["high"]) == ("middle", 2, 30, 40)
    # Wilson, by hand: 2 of 2 with z = 1.96 lies in [1 / (1 + z^2 / 2), 1].
    assert middle["accuracy_interval"] == pytest.approx([1 / (1 + 1.959964**2 / 2), 1])


def test_equal_values_stay_together():
    correct = np.arange(9) < 6
    [only] = accuracy_by_third(correct, np.full(9, 48.0))
    assert (only["n"], only["low"], only["accuracy"]) == (9, 48.0, pytest.approx(2 / 3))
    parts = accuracy_by_third(correct, [48] * 5 + [96] * 4)
    assert [(part["n"], part["low"]) for part in parts] == [(5, 48), (4, 96)]
    with pytest.raises(ValueError, match="pass both"):
        accuracy_by_third(correct, [1.0])


def test_slices_take_the_shorter_side_and_leave_out_unknown_sizes():
    correct = np.array([True, False, True])
    faces = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    parts = slices(correct, faces, ["L 48x90", "RGB 30x20", "CSV 48x48"])
    assert [(part["low"], part["n"]) for part in parts["size"]] == [(20, 1), (48, 2)]
    assert sum(part["n"] for part in parts["sharpness"]) == 3
    assert list(slices(correct, faces, ["", "", ""])) == ["sharpness"]
    table = slices_text(parts).splitlines()
    assert len({len(line.split("%")[0]) for line in table[1:]}) == 1  # aligned
    assert table[-1].startswith("size 48 ")


def test_embedding_map_is_seeded():
    features = np.random.default_rng(0).normal(size=(40, 6))
    features[20:] += 20
    points = embedding_map(features)
    assert points.shape == (40, 2)
    np.testing.assert_array_equal(points, embedding_map(features))
    with pytest.raises(ValueError, match="at least 5 rows"):
        embedding_map(features[:3])


def test_embedding_map_is_the_same_with_any_number_of_threads():
    features = np.random.default_rng(0).normal(size=(100, 1024))
    maps = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            maps.append(embedding_map(features))
    np.testing.assert_array_equal(*maps)


@pytest.mark.parametrize("size", [0, 1e-30, 1, 1e30])
@pytest.mark.parametrize("width", [1, 8])
def test_embedding_map_of_a_dead_or_diverged_network(size, width):
    features = size * np.random.default_rng(0).normal(size=(12, width))
    points = embedding_map(features)
    assert points.shape == (12, 2) and points.dtype == np.float32
    assert np.isfinite(points).all()


def test_vote_agreement_by_hand():
    votes = np.array([[1, 9, 0], [6, 4, 0], [5, 5, 0], [0, 0, 10], [0, 0, 0]])
    predicted = PROBABILITIES.argmax(axis=1)
    result = vote_agreement(predicted, LABELS, votes, VOTES, NAMES)
    assert (result["n"], result["tied"], result["unrated"]) == (3, 1, 1)
    assert result["label_agrees"] == pytest.approx(1 / 3)  # only face 0
    assert result["prediction_agrees"] == pytest.approx(2 / 3)  # faces 0 and 1
    assert result["prediction_right"] == pytest.approx(1 / 3)
    assert [row["n"] for row in result["by_clarity"]] == [2, 1, 0]
    assert [row["n"] for row in result["per_class"]] == [3, 0]
    assert "left out: 1 with tied votes, 1 unrated" in votes_text(result)
    with pytest.raises(ValueError, match="no column for Anger"):
        vote_agreement(predicted, LABELS, votes, ("Happy", "x", "NF"), NAMES)
    with pytest.raises(ValueError, match=r"shape \(5, 3\)"):
        vote_agreement(predicted, LABELS, votes[:2], VOTES, NAMES)


def test_suspects_are_ordered_by_how_clearly_people_disagree():
    votes = np.array([[1, 9, 0], [6, 4, 0], [5, 5, 0], [0, 0, 10], [6, 4, 0]])
    suspects = label_suspects(PROBABILITIES, LABELS, votes, VOTES, NAMES)
    assert [s["position"] for s in suspects] == [3, 1, 4]  # 1 before 4: the model agrees more
    assert suspects[0]["votes_say"] == "NF"
    assert suspects[1] == {
        "position": 1, "label": "Anger", "votes_say": "Happy", "votes_for_label": 0.4,
        "votes_for_winner": 0.6, "predicted": "Happy", "confidence": 0.8,
    }  # fmt: skip
