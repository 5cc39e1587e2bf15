"""Temperature, calibration error and abstaining against slow manual versions."""

import numpy as np
import pytest
from scipy import stats

from fer_helpers.calibration import (
    abstain_threshold,
    answered_above,
    fit_tau,
    fit_temperature,
    logit_adjust,
    reliability,
    risk_coverage,
    softmax,
)


def calibrated(n=3000, size=7, seed=0, sharpness=2.0):
    """Logits whose softmax is the true chance of each label."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(n, size))
    labels = (softmax(logits).cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return logits, np.minimum(labels, size - 1)


def test_softmax_survives_large_scores():
    probabilities = softmax(np.array([[1e4, 0.0], [0.0, np.log(3)]]))
    np.testing.assert_allclose(probabilities, [[1, 0], [0.25, 0.75]])
    np.testing.assert_allclose(softmax(np.array([[0.0, 2.0]]), 2.0), softmax(np.array([[0, 1.0]])))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(true):
    logits, labels = calibrated()
    assert fit_temperature(true * logits, labels) == pytest.approx(true, rel=0.06)


def test_a_temperature_that_would_leave_its_bounds():
    assert fit_temperature(np.eye(3), np.arange(3)) == 1.0  # all right: certainty is not learned
    assert fit_temperature(10 * np.eye(3), np.array([1, 2, 0])) == pytest.approx(20, rel=0.01)


def test_ece_agrees_with_a_slow_loop():
    logits, labels = calibrated(n=500)
    probabilities = softmax(1.5 * logits)
    slow = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        rows = [i for i in range(500) if low < probabilities[i].max() <= high]
        if rows:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in rows])
            sure = np.mean([probabilities[i].max() for i in rows])
            slow += len(rows) / 500 * abs(right - sure)
    found = reliability(probabilities, labels)
    assert found["ece"] == pytest.approx(slow)
    assert sum(found["count"]) == 500
    assert np.isnan(found["accuracy"][0])  # seven classes: no confidence below 1/7


def test_the_band_of_a_bin_is_binomial():
    found = reliability(np.tile([0.7, 0.3], (400, 1)), np.zeros(400, int))
    (place,) = np.flatnonzero(found["count"])
    band = stats.binom.ppf([0.025, 0.975], 400, 0.7) / 400
    assert [found["low"][place], found["high"][place]] == pytest.approx(band, abs=0.006)


def test_a_confidence_on_the_edge_of_two_bins_counts_in_the_lower_one():
    edge = np.linspace(0, 1, 16)[9]
    found = reliability(np.array([[edge, 1 - edge]]), np.array([0]))
    assert np.flatnonzero(found["count"]).tolist() == [8]


def test_the_calibrated_range_covers_a_calibrated_model_and_no_other():
    inside = 0
    for seed in range(20):
        logits, labels = calibrated(n=800, seed=seed)
        found = reliability(softmax(logits), labels)
        low, high = found["ece_calibrated_range"]
        inside += low <= found["ece"] <= high
    assert inside >= 17
    found = reliability(softmax(2 * logits), labels)
    assert found["ece"] > found["ece_calibrated_range"][1]


def test_the_range_agrees_with_labels_drawn_from_the_probabilities():
    logits, _ = calibrated(n=400)
    probabilities = softmax(logits)
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(200):
        labels = (probabilities.cumsum(axis=1) < generator.random((400, 1))).sum(axis=1)
        drawn.append(reliability(probabilities, np.minimum(labels, 6))["ece"])
    found = reliability(probabilities, np.zeros(400, int))["ece_calibrated_range"]
    assert found == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.008)


def test_logit_adjustment():
    logits = np.array([[1.0, 0.5], [0.0, 0.0]])
    adjusted = logit_adjust(logits, np.array([3, 1]), 1.0)
    np.testing.assert_allclose(adjusted, logits - np.log([0.75, 0.25]))
    assert adjusted.argmax(axis=1).tolist() == [1, 1]
    np.testing.assert_array_equal(logit_adjust(logits, np.array([3, 1]), 0.0), logits)
    with pytest.raises(ValueError, match="not in column 1"):
        logit_adjust(logits, np.array([1, 0]), 1.0)
    with pytest.raises(ValueError, match="one share per column"):
        logit_adjust(logits, np.ones(3), 1.0)


def test_risk_coverage_by_hand():
    # Confidence 0.9 right, 0.8 wrong, 0.7 right, 0.7 right, 0.6 wrong: the two 0.7 go together.
    confidence = np.array([0.7, 0.9, 0.6, 0.8, 0.7])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 0, 1, 1, 0])
    curve = risk_coverage(probabilities, labels)
    np.testing.assert_allclose(curve["threshold"], [0.9, 0.8, 0.7, 0.6])
    np.testing.assert_allclose(curve["coverage"], [0.2, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(curve["accuracy"], [1, 0.5, 0.75, 0.6])
    chosen = abstain_threshold(probabilities, labels, 0.8)
    assert chosen == pytest.approx({"threshold": 0.7, "coverage": 0.8, "accuracy": 0.75})
    assert abstain_threshold(probabilities, labels, 0.5)["threshold"] == 0.7
    assert abstain_threshold(probabilities, labels, 1.0)["coverage"] == 1.0
    assert answered_above(probabilities, labels, 0.75) == pytest.approx(
        {"threshold": 0.75, "coverage": 0.4, "accuracy": 0.5}
    )
    assert answered_above(probabilities, labels, chosen["threshold"]) == pytest.approx(chosen)
    assert answered_above(probabilities, labels, 1.0)["accuracy"] is None
    with pytest.raises(ValueError, match="at most 1"):
        abstain_threshold(probabilities, labels, 1.2)


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(ValueError, match=r"pass softmax\(logits\)"):
        risk_coverage(np.array([[2.0, -1.0]]), np.array([0]))


def test_tau_is_the_one_with_the_best_macro_f1_and_0_where_nothing_helps():
    random = np.random.default_rng(0)
    prior = np.array([0.9, 0.1])
    labels = (random.random(4000) < prior[1]).astype(int)
    evidence = random.normal(size=4000) + 1.5 * labels
    # A network that has learned the class shares: log prior plus what it sees.
    logits = np.stack([np.zeros(4000), 1.5 * evidence - 1.125], 1) + np.log(prior)

    def macro_f1(tau):
        guess = logit_adjust(logits, prior, tau).argmax(1)
        return np.mean([2 * ((guess == k) & (labels == k)).sum()
                        / ((guess == k).sum() + (labels == k).sum()) for k in (0, 1)])  # fmt: skip

    tau = fit_tau(logits, labels, prior)
    assert 0 < tau < 1.5
    assert macro_f1(tau) == max(macro_f1(t) for t in np.arange(31) / 20) > macro_f1(0.0)
    assert fit_tau(10 * np.eye(2)[labels], labels, prior) == 0
