"""Confusion statistics: the original notebook's numbers, and slow references."""

import numpy as np
import pytest
from scipy import stats

from fer_helpers.confusions import report_text, top_confusions
from fer_helpers.independence import chi_square, chi_square_text, error_residuals, holm

NAMES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
ORIGINAL = np.array(
    [
        [597, 29, 88, 31, 86, 105, 22],
        [21, 81, 2, 2, 1, 3, 1],
        [131, 15, 438, 21, 87, 229, 103],
        [32, 5, 28, 1514, 110, 45, 40],
        [73, 12, 37, 59, 836, 194, 22],
        [131, 16, 115, 41, 213, 714, 17],
        [21, 0, 77, 36, 15, 15, 667],
    ]
)


def test_the_original_notebooks_test_and_lists_come_back():
    result = chi_square(ORIGINAL, NAMES)
    assert round(result["statistic"], 2) == 16557.93
    assert (result["p_value"], result["dof"], result["significant"]) == (0.0, 36, True)
    assert [
        (c["truth"], c["prediction"], round(100 * c["share"], 1), c["count"])
        for c in result["high_confusions"]
    ] == [
        ("Fear", "Sad", 22.4, 229),
        ("Disgust", "Anger", 18.9, 21),
        ("Sad", "Neutral", 17.1, 213),
        ("Neutral", "Sad", 15.7, 194),
    ]
    (weak,) = result["weak_classes"]
    assert (weak["name"], round(100 * weak["accuracy"], 1)) == ("Fear", 42.8)
    assert [(t["prediction"], round(100 * t["share"], 1)) for t in weak["targets"]] == [
        ("Sad", 22.4),
        ("Anger", 12.8),
        ("Surprise", 10.1),
    ]
    text = chi_square_text(result)
    assert "chi-square 16557.93, p < 1e-300, 36 degrees of freedom" in text
    assert "Fear -> Sad: 22.4 % (229)" in text


def test_residuals_against_the_formula_cell_by_cell():
    result = chi_square(ORIGINAL, NAMES)
    n = ORIGINAL.sum()
    for i, j in np.ndindex(7, 7):
        row, column = ORIGINAL[i].sum() / n, ORIGINAL[:, j].sum() / n
        expected = n * row * column
        slow = (ORIGINAL[i, j] - expected) / np.sqrt(expected * (1 - row) * (1 - column))
        assert result["residuals"][i][j] == pytest.approx(slow)
    assert result["cramers_v"] == pytest.approx(np.sqrt(result["statistic"] / n / 6))
    # Against independence, only one off-diagonal cell exceeds chance.
    assert [(c["truth"], c["prediction"]) for c in result["exceeding"]] == [("Fear", "Sad")]


def test_two_by_two_residuals_are_the_root_of_chi_square():
    result = chi_square(np.array([[30, 10], [15, 25]]), ("a", "b"))
    assert abs(result["residuals"][0][0]) == pytest.approx(np.sqrt(result["statistic"]))
    assert result["p_adjusted"][0][1] == pytest.approx(min(4 * result["p_value"], 1))


def test_errors_that_follow_their_margins_do_not_stand_out():
    rows, columns = np.array([100, 200, 400, 300]), np.array([0.4, 0.3, 0.2, 0.1])
    confusion = np.rint(np.outer(rows, columns)).astype(int)
    np.fill_diagonal(confusion, 5000)
    result = error_residuals(confusion, list("abcd"))
    assert result["exceeding"] == []
    assert np.isnan(result["residuals"][0, 0])
    assert np.nanmax(np.abs(result["residuals"])) < 0.2
    confusion[0, 3] += 40
    cell = error_residuals(confusion, list("abcd"))["exceeding"][0]
    assert (cell["truth"], cell["prediction"]) == ("a", "d")


def test_error_residuals_are_standard_normal_under_quasi_independence():
    generator = np.random.default_rng(0)
    expected = np.outer([80, 120, 60, 140], [0.3, 0.2, 0.3, 0.2])
    np.fill_diagonal(expected, 0)
    drawn = [
        error_residuals(generator.poisson(expected) + np.eye(4, dtype=int) * 999, list("abcd"))
        for _ in range(300)
    ]
    values = np.array([d["residuals"] for d in drawn])
    spread = values.std(axis=0)[~np.eye(4, dtype=bool)]
    assert ((spread > 0.85) & (spread < 1.15)).all()
    assert np.mean([len(d["exceeding"]) > 0 for d in drawn]) < 0.08


def test_empty_rows_and_columns_are_dropped_and_said():
    confusion = ORIGINAL.copy()
    confusion[1] = 0
    confusion[:, 6] = 0
    result = chi_square(confusion, NAMES)
    assert result["note"] == (
        "no image of Disgust: row dropped; Surprise never predicted: column dropped"
    )
    kept = confusion[[0, 2, 3, 4, 5, 6]][:, :6]
    assert result["statistic"] == pytest.approx(stats.chi2_contingency(kept)[0])
    assert np.isnan(result["residuals"][1]).all() and np.isnan(result["p_adjusted"][:, 6]).all()
    assert "Disgust: row dropped" in chi_square_text(result)


@pytest.mark.parametrize(
    "confusion", [np.zeros((3, 3)), np.diag([5, 0, 0]), [[5, 1, 0]] + [[0] * 3] * 2]
)
def test_too_little_for_a_test_is_said(confusion):
    result = chi_square(np.array(confusion), ("a", "b", "c"))
    assert result["statistic"] is None
    assert "there is no test" in chi_square_text(result)


def test_a_perfect_model_has_no_confusion():
    result = chi_square(np.diag([5, 6, 7]), ("a", "b", "c"))
    assert result["cramers_v"] == pytest.approx(1)
    assert result["exceeding"] == result["among_errors"]["exceeding"] == []
    assert result["high_confusions"] == result["weak_classes"] == []


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.5])) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_top_confusions_of_the_periodic_evaluation():
    top = top_confusions(ORIGINAL, NAMES)
    assert [(c["truth"], c["prediction"], c["count"]) for c in top] == [
        ("Fear", "Sad", 229),
        ("Disgust", "Anger", 21),
        ("Sad", "Neutral", 213),
    ]
    assert top_confusions(np.diag([3, 0, 2]), ("a", "b", "c")) == []
    assert len(top_confusions(ORIGINAL, NAMES, k=99, above=0.15)) == 4


def test_report_text_names_only_classes_that_occur():
    text = report_text(ORIGINAL, NAMES)
    assert "Fear      0.558     0.428     0.484      1024" in text
    assert "accuracy                          0.675      7178" in text
    confusion = ORIGINAL.copy()
    confusion[1] = confusion[:, 1] = 0
    assert "Disgust" not in report_text(confusion, NAMES)


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match=r"need \(2, 2\)"):
        chi_square(ORIGINAL, ("a", "b"))
    with pytest.raises(ValueError, match="counts"):
        chi_square(np.array([[0.5, 0.5], [0.1, 0.9]]), ("a", "b"))
