"""Metrics against slow manual versions, intervals, and comparisons of models."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from fer_helpers.evaluation import (
    bootstrap_intervals,
    class_scores,
    compare,
    confusion_matrix,
    confusion_scores,
    evaluate,
    mcnemar,
    p_text,
    scores_text,
    seeds_summary,
)

NAMES = ("Anger", "Happy", "Sad")

# A prediction file small enough for a pencil: probabilities, label.
FILE = [
    ((0.7, 0.2, 0.1), 0),
    ((0.6, 0.3, 0.1), 0),
    ((0.3, 0.5, 0.2), 0),
    ((0.1, 0.8, 0.1), 1),
    ((0.2, 0.6, 0.2), 1),
    ((0.5, 0.4, 0.1), 1),
    ((0.1, 0.1, 0.8), 2),
    ((0.2, 0.7, 0.1), 2),
]
PROBABILITIES = np.array([row for row, _ in FILE])
LABELS = np.array([label for _, label in FILE])


def slow_scores(labels, predicted, size):
    """The four scores, one image at a time."""
    right = sum(int(y == p) for y, p in zip(labels, predicted, strict=True))
    f1s, recalls = [], []
    for k in range(size):
        hit = sum(int(y == k and p == k) for y, p in zip(labels, predicted, strict=True))
        true = sum(int(y == k) for y in labels)
        said = sum(int(p == k) for p in predicted)
        if true or said:
            f1s.append(2 * hit / (true + said))
        if true:
            recalls.append(hit / true)
    n = len(labels)
    chance = (
        sum(
            sum(int(y == k) for y in labels) * sum(int(p == k) for p in predicted)
            for k in range(size)
        )
        / n**2
    )
    return {
        "accuracy": right / n,
        "macro_f1": sum(f1s) / len(f1s),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "kappa": (right / n - chance) / (1 - chance) if chance < 1 else 0.0,
    }


def random_answers(n=400, size=7, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, size, n)
    logits = generator.normal(size=(n, size))
    logits[np.arange(n), labels] += 1.0
    return logits, labels


def test_a_hand_made_prediction_file_gives_every_number():
    result = evaluate(np.log(PROBABILITIES), LABELS, NAMES, bootstrap=200)
    assert result["n"] == 8
    assert result["accuracy"] == 5 / 8
    assert result["top2_accuracy"] == 7 / 8  # only the last image has its truth in third place
    assert result["confusion"] == [[2, 1, 0], [1, 2, 0], [0, 1, 1]]
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert result["macro_f1"] == pytest.approx((4 / 6 + 4 / 7 + 2 / 3) / 3)
    chance = (3 * 3 + 3 * 4 + 2 * 1) / 64
    assert result["kappa"] == pytest.approx((5 / 8 - chance) / (1 - chance))
    own = [0.7, 0.6, 0.3, 0.8, 0.6, 0.4, 0.8, 0.1]
    assert result["nll"] == pytest.approx(-sum(math.log(p) for p in own) / 8)
    brier = [sum((p - (k == y)) ** 2 for k, p in enumerate(row)) for row, y in FILE]
    assert result["brier"] == pytest.approx(sum(brier) / 8)
    # Confidence and hit per image; 0.5, 0.6, 0.7 and 0.8 lie in four different bins of 1/15.
    bins = {0.5: [0, 0], 0.6: [1, 1], 0.7: [1, 0], 0.8: [1, 1]}
    ece = sum(len(hits) / 8 * abs(sum(hits) / len(hits) - c) for c, hits in bins.items())
    assert result["ece"] == pytest.approx(ece)
    assert result["before_temperature"] == {
        key: result[key] for key in ("nll", "brier", "ece", "ece_calibrated_range")
    }
    assert result["per_class"]["Happy"] == {
        "precision": 0.5, "recall": pytest.approx(2 / 3), "f1": pytest.approx(4 / 7),
        "support": 3, "predicted": 4,
    }  # fmt: skip
    assert result["never_predicted"] == result["absent"] == []
    assert json.loads(json.dumps(result)) == result
    assert "accuracy            62.50 %" in scores_text(result, "hand-made")


def test_a_temperature_divides_the_logits_wherever_probabilities_count():
    logits, labels = random_answers()
    names = list("abcdefg")
    plain = evaluate(logits, labels, names, bootstrap=0)
    cooled = evaluate(logits, labels, names, bootstrap=0, temperature=2.0)
    halved = evaluate(logits / 2, labels, names, bootstrap=0)
    for key in ("nll", "brier", "ece"):
        assert cooled[key] == pytest.approx(halved[key])
        assert abs(cooled[key] - plain[key]) > 0.01
        assert cooled["before_temperature"][key] == plain[key]
    assert cooled["accuracy"] == plain["accuracy"]


def test_scores_agree_with_the_slow_version_and_with_scikit_learn():
    logits, labels = random_answers()
    predicted = logits.argmax(axis=1)
    result = evaluate(logits, labels, list("abcdefg"), bootstrap=0)
    for name, value in slow_scores(labels, predicted, 7).items():
        assert result[name] == pytest.approx(value)
        assert result[f"{name}_interval"] is None
    assert result["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert result["kappa"] == pytest.approx(metrics.cohen_kappa_score(labels, predicted))
    assert result["nll"] == pytest.approx(
        metrics.log_loss(labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    )
    assert result["top2_accuracy"] == pytest.approx(
        metrics.top_k_accuracy_score(labels, logits, k=2)
    )
    table = metrics.precision_recall_fscore_support(labels, predicted)
    each = class_scores(confusion_matrix(labels, predicted, 7))
    for mine, theirs in zip(("precision", "recall", "f1", "support"), table, strict=True):
        np.testing.assert_allclose(each[mine], theirs)


def test_macro_f1_is_not_accuracy_on_a_skewed_set():
    labels = np.array([0] * 95 + [1] * 5)
    logits = np.tile([1.0, 0.0], (100, 1))
    result = evaluate(logits, labels, ("common", "rare"), bootstrap=100)
    assert result["accuracy"] == 0.95
    assert result["macro_f1"] == pytest.approx(0.95 * 2 / 1.95 / 2)
    assert result["balanced_accuracy"] == 0.5
    assert result["kappa"] == 0.0
    assert result["never_predicted"] == ["rare"]


def test_absent_classes_and_a_single_class_are_no_trouble():
    logits = np.eye(3)[[0, 0, 1]]
    result = evaluate(logits, np.array([0, 0, 1]), NAMES, bootstrap=50)
    assert result["absent"] == result["never_predicted"] == ["Sad"]
    assert result["macro_f1"] == result["balanced_accuracy"] == result["kappa"] == 1.0
    one = evaluate(logits[:2], np.array([0, 0]), NAMES, bootstrap=50)
    assert one["accuracy"] == 1.0
    assert one["kappa"] == 0.0
    json.dumps(one, allow_nan=False)
    assert "no image of" in scores_text(result)


def test_equal_scores_go_to_the_first_class():
    result = evaluate(np.zeros((3, 3)), np.array([0, 1, 2]), NAMES, bootstrap=0)
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["top2_accuracy"] == pytest.approx(2 / 3)


def test_shuffled_labels_give_chance_inside_the_interval():
    logits, labels = random_answers(n=2000)
    shuffled = np.random.default_rng(1).permutation(labels)
    result = evaluate(logits, shuffled, list("abcdefg"), bootstrap=2000)
    low, high = result["accuracy_interval"]
    assert low < 1 / 7 < high
    low, high = result["kappa_interval"]
    assert low < 0 < high


def test_bootstrap_agrees_with_a_slow_loop_over_images():
    logits, labels = random_answers(n=150, size=4)
    predicted = logits.argmax(axis=1)
    fast = bootstrap_intervals(confusion_matrix(labels, predicted, 4), repeats=10_000, seed=3)
    generator = np.random.default_rng(4)
    drawn = []
    for _ in range(1200):
        rows = generator.integers(0, 150, 150)
        drawn.append(confusion_scores(confusion_matrix(labels[rows], predicted[rows], 4)))
    for name, (low, high) in fast.items():
        slow = np.quantile([scores[name] for scores in drawn], [0.025, 0.975])
        assert (low, high) == pytest.approx(tuple(slow), abs=0.015)
    assert fast == bootstrap_intervals(
        confusion_matrix(labels, predicted, 4), repeats=10_000, seed=3
    )


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_not_certain(right):
    """By hand, Wilson's bound for 20 of 20 is 20 / (20 + 1.96^2)."""
    confusion = np.diag([10, 10]) if right else np.array([[0, 10], [10, 0]])
    intervals = bootstrap_intervals(confusion, repeats=100)
    low, high = intervals.pop("accuracy")
    bound = 20 / (20 + 1.959964**2)
    assert (low, high) == pytest.approx((bound, 1) if right else (0, 1 - bound), abs=1e-6)
    assert intervals == dict.fromkeys(("macro_f1", "balanced_accuracy", "kappa"))
    result = evaluate(np.eye(2)[[0, 1]], np.array([0, 1] if right else [1, 0]), NAMES[:2])
    said = [line for line in scores_text(result).splitlines() if "interval" in line]
    assert len(said) == 1 and said[0].startswith("accuracy")


def test_a_class_that_a_draw_lacks_does_not_lift_the_averages():
    confusion = np.array([[50, 0, 0], [0, 49, 0], [1, 0, 0]])
    intervals = bootstrap_intervals(confusion, repeats=2000)
    assert intervals["balanced_accuracy"] == pytest.approx([2 / 3, 2 / 3])
    assert intervals["macro_f1"][1] < 0.67
    assert 0.95 < intervals["accuracy"][0] < intervals["accuracy"][1] == 1


def test_macro_f1_averages_over_the_same_classes_in_every_draw():
    """A class without images counts once it is answered, so draws without that answer are out."""
    confusion = np.diag([100, 100, 100, 0])
    confusion[0, 1] = 40
    confusion[0, 3] = 1
    value = confusion_scores(confusion)["macro_f1"]
    low, high = bootstrap_intervals(confusion, repeats=4000)["macro_f1"]
    assert value < 0.75 and low < value < high < 0.75  # no draw averages over three classes


def test_where_hardly_a_draw_has_every_class_all_of_them_count():
    labels = np.arange(7)  # one image each: a draw holds all seven 6 times in 1,000
    low, high = bootstrap_intervals(
        confusion_matrix(labels, np.where(labels == 6, 0, labels), 7), repeats=2000
    )["balanced_accuracy"]
    assert low < 6 / 7 < high


def test_mcnemar_is_the_exact_binomial():
    a = np.array([1] * 10 + [1] * 8 + [0] * 2 + [0] * 3, dtype=bool)
    b = np.array([1] * 10 + [0] * 8 + [1] * 2 + [0] * 3, dtype=bool)
    result = mcnemar(a, b)
    assert (result["only_a"], result["only_b"]) == (8, 2)
    assert result["difference"] == pytest.approx(6 / 23)
    slow = 2 * sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert result["p_value"] == pytest.approx(slow)
    assert mcnemar(a, a)["p_value"] == 1.0
    with pytest.raises(ValueError, match="over the same images"):
        mcnemar(a, b[1:])


def test_paired_comparison_cancels_what_both_share():
    logits, labels = random_answers(n=600)
    a = logits.argmax(axis=1)
    b = a.copy()
    b[:30] = labels[:30]
    one, two = b == labels, a == labels
    result = compare(one, two, bootstrap=2000)
    gained = int((a[:30] != labels[:30]).sum())
    assert result["difference"] == pytest.approx(gained / 600)
    low, high = result["interval"]
    assert 0 < low < gained / 600 < high
    own = bootstrap_intervals(confusion_matrix(labels, a, 7), repeats=2000)["accuracy"]
    assert high - low < (own[1] - own[0]) / 2
    assert mcnemar(one, two).items() <= result.items() and result["only_a"] == gained
    rows = np.random.default_rng(5).integers(0, 600, (2000, 600))
    slow = one[rows].mean(axis=1) - two[rows].mean(axis=1)
    assert [low, high] == pytest.approx(list(np.quantile(slow, [0.025, 0.975])), abs=0.004)
    for other in (one, np.ones(600, bool)):  # every draw would say the same
        assert compare(other, other)["interval"] is None
    assert compare(np.ones(9, bool), np.zeros(9, bool))["interval"] is None


@pytest.mark.parametrize("wins", [4, 5, 6])
def test_a_paired_interval_does_not_contradict_the_p_value(wins):
    a = np.arange(50) < 30
    result = compare(a, a & (np.arange(50) >= wins))
    assert (result["interval"] is None) == (result["p_value"] > 0.05)


def test_no_p_value_is_shown_as_0():
    assert [p_text(p) for p in (1.0, 0.0123, 0.001, 0.00099, 0)] == [
        "1.000", "0.012", "0.001", "< 0.001", "< 0.001",
    ]  # fmt: skip


def test_seeds_summary():
    result = seeds_summary([0.70, 0.72, 0.74])
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(0.72)
    assert result["sd"] == pytest.approx(0.02)
    assert result["high"] - result["mean"] == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    assert seeds_summary([0.7])["sd"] is None
    with pytest.raises(ValueError, match="at least one"):
        seeds_summary([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.full((8, 3), np.nan)}, "not finite in 8 of 8 rows"),
        ({"logits": np.zeros((8, 4))}, "4 columns for 3 class names"),
        ({"logits": np.zeros(8)}, "one row per image"),
        ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "nothing to evaluate"),
        ({"labels": LABELS[:-1]}, "8 rows but there are 7 labels"),
        ({"labels": np.where(LABELS == 2, 3, LABELS)}, "holds 3 in row 6"),
        ({"labels": LABELS - 1}, "holds -1 in row 0"),
        ({"labels": LABELS + 0.5}, "class numbers are integers"),
        ({"labels": np.stack([LABELS, LABELS], axis=1)}, "one class number per image"),
        ({"class_names": ("a", "b", "a")}, "holds 'a' twice"),
        ({"class_names": ()}, "is empty"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_bad_input_is_explained_in_one_sentence(change, message):
    arguments = {"logits": np.log(PROBABILITIES), "labels": LABELS, "class_names": NAMES} | change
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(**arguments)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
