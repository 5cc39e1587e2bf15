"""Choosing faces, vote agreement and suspects by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fer_helpers.exploration import (
    embedding_map,
    label_suspects,
    pick_faces,
    precision_recall,
    vote_agreement,
    votes_text,
)

NAMES = ("Anger", "Happy")
VOTES = ("Happy", "Anger", "NF")
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.55, 0.45]])
LABELS = np.array([0, 0, 1, 0, 0])


def test_pick_faces():
    assert pick_faces(PROBABILITIES, LABELS).tolist() == [1, 2, 3]
    assert pick_faces(PROBABILITIES, LABELS, how="confident").tolist() == [1, 2, 3]
    assert pick_faces(PROBABILITIES, LABELS, truth=0, prediction=0).tolist() == [0, 4]
    assert pick_faces(PROBABILITIES, LABELS, truth=1).tolist() == [2]
    assert pick_faces(PROBABILITIES, LABELS, low=0.65, high=0.75).tolist() == [2]
    assert pick_faces(PROBABILITIES, LABELS, truth=1, prediction=1).tolist() == []
    few = pick_faces(PROBABILITIES, LABELS, count=2)
    assert len(few) == 2
    np.testing.assert_array_equal(few, pick_faces(PROBABILITIES, LABELS, count=2))
    with pytest.raises(ValueError, match="'random' or 'confident'"):
        pick_faces(PROBABILITIES, LABELS, how="best")


def test_precision_recall_leaves_absent_classes_out():
    curves = precision_recall(PROBABILITIES, np.zeros(5, int), NAMES)
    assert list(curves) == ["Anger"]
    curves = precision_recall(PROBABILITIES, LABELS, NAMES)
    assert curves["Happy"]["average_precision"] == pytest.approx(
        average_precision_score(LABELS == 1, PROBABILITIES[:, 1])
    )
    assert curves["Anger"]["share"] == 0.8


def test_embedding_map_is_seeded_and_limited():
    features = np.random.default_rng(0).normal(size=(40, 6))
    features[20:] += 20
    points, shown = embedding_map(features, limit=30)
    assert points.shape == (30, 2)
    assert (np.diff(shown) > 0).all()
    np.testing.assert_array_equal(points, embedding_map(features, limit=30)[0])
    with pytest.raises(ValueError, match="at least 5 rows"):
        embedding_map(features[:3])


def test_vote_agreement_by_hand():
    votes = np.array([[1, 9, 0], [6, 4, 0], [5, 5, 0], [0, 0, 10], [0, 0, 0]])
    predicted = PROBABILITIES.argmax(axis=1)
    result = vote_agreement(predicted, LABELS, votes, VOTES, NAMES)
    assert (result["n"], result["tied"], result["unrated"]) == (3, 1, 1)
    assert result["label_agrees"] == pytest.approx(1 / 3)  # only face 0
    assert result["prediction_agrees"] == pytest.approx(2 / 3)  # faces 0 and 1
    assert result["prediction_right"] == pytest.approx(1 / 3)
    assert result["votes_for_prediction"] == pytest.approx((0.9 + 0.6 + 0) / 3)
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
