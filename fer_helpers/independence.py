"""Testing truth against prediction: is there a relation, and which confusions stand out?

The original notebook lists confusions above 15 % and classes below 50 %, and runs a chi-square
test. That test only asks whether prediction and truth are related at all, which every network
better than chance passes. So its answer comes with the strength of the relation (Cramér's V) and
with one test per cell, corrected for there being many.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from fer_helpers.confusions import check_confusion, check_names, class_scores, top_confusions


def chi_square(confusion: np.ndarray, class_names: Sequence[str]) -> dict:
    """Test truth against prediction, cell by cell, and list the original notebook's confusions.

    Classes that are never true (empty row) or never predicted (empty column) are dropped and named
    in `note`. Keys:

    - statistic, p_value, dof, significant (p < 0.05), cramers_v (0..1): Pearson's chi-square, no
      continuity correction; None when fewer than 2 rows or columns are left.
    - residuals, p_adjusted (K, K), NaN in dropped rows and columns: adjusted standardized
      residuals (about normal if truth and prediction were independent) and two-sided p values,
      Holm-corrected over all cells. `exceeding`: the off-diagonal cells above chance with
      p_adjusted < 0.05. `small_expected`: cells with fewer than 5 expected, where that is rough.
    - among_errors: the same question asked of the wrong answers alone (see `error_residuals`).
    - high_confusions: row share above 0.15; weak_classes: recall below 0.5, with up to three
      targets above 0.05.

    Sources: Agresti 2013, "Categorical Data Analysis", sections 3.2-3.3; Holm 1979, "A simple
    sequentially rejective multiple test procedure".
    """
    names = check_names(class_names)
    confusion = check_confusion(confusion, names)
    rows = np.flatnonzero(confusion.sum(axis=1))
    columns = np.flatnonzero(confusion.sum(axis=0))
    notes = []
    if absent := [name for k, name in enumerate(names) if k not in rows]:
        notes.append(f"no image of {', '.join(absent)}: row dropped")
    if unsaid := [name for k, name in enumerate(names) if k not in columns]:
        notes.append(f"{', '.join(unsaid)} never predicted: column dropped")
    if len(rows) < 2 or len(columns) < 2:
        notes.append("fewer than 2 rows or columns are left, so there is no test")
        test = dict.fromkeys(("statistic", "p_value", "dof", "significant", "cramers_v"))
        expected = residuals = np.full(confusion.shape, np.nan)
    else:
        part = confusion[np.ix_(rows, columns)]
        statistic, p_value, dof, fitted = stats.chi2_contingency(part, correction=False)
        total = part.sum()
        open_rows = 1 - part.sum(axis=1, keepdims=True) / total
        open_columns = 1 - part.sum(axis=0, keepdims=True) / total
        expected = np.full(confusion.shape, np.nan)
        residuals = expected.copy()
        expected[np.ix_(rows, columns)] = fitted
        residuals[np.ix_(rows, columns)] = (part - fitted) / np.sqrt(
            fitted * open_rows * open_columns
        )
        test = {
            "statistic": float(statistic),
            "p_value": float(p_value),
            "dof": int(dof),
            "significant": bool(p_value < 0.05),
            "cramers_v": float(np.sqrt(statistic / total / (min(part.shape) - 1))),
        }
    recall = class_scores(confusion)["recall"]
    cells = top_confusions(confusion, names, k=len(names) ** 2, above=0.05)
    return {
        "n": int(confusion.sum()),
        **test,
        "note": "; ".join(notes),
        **_cell_tests(confusion, expected, residuals, names),
        "among_errors": error_residuals(confusion, names),
        "high_confusions": [cell for cell in cells if cell["share"] > 0.15],
        "weak_classes": [
            {
                "name": names[k],
                "accuracy": float(recall[k]),
                "targets": [cell for cell in cells if cell["truth"] == names[k]][:3],
            }
            for k in rows
            if recall[k] < 0.5
        ],
    }


def error_residuals(confusion: np.ndarray, class_names: Sequence[str]) -> dict:
    """Ask of the wrong answers alone: which confusions stand out?

    Chance here means quasi-independence: every true class makes its number of errors, every class
    attracts its number of wrong answers, and nothing else links the two. Against plain
    independence the many right answers drown the wrong ones. Keys as in `chi_square`: residuals,
    p_adjusted (K, K), NaN on the diagonal and in rows and columns without errors; exceeding,
    small_expected. Sources: Goodman 1968, "The analysis of cross-classified data" (JASA 63);
    leverages as in Agresti 2013, section 4.5.
    """
    names = check_names(class_names)
    confusion = check_confusion(confusion, names)
    errors = confusion * ~np.eye(len(names), dtype=bool)
    rows, columns = np.flatnonzero(errors.sum(axis=1)), np.flatnonzero(errors.sum(axis=0))
    expected = np.full(errors.shape, np.nan)
    residuals = expected.copy()
    if len(rows) > 1 and len(columns) > 1:
        wanted_rows, wanted_columns = errors.sum(axis=1)[rows], errors.sum(axis=0)[columns]
        fitted = (rows[:, None] != columns).astype(np.float64)
        for _ in range(2000):  # iterative proportional fitting; some twenty rounds are usual
            fitted *= (wanted_rows / np.maximum(fitted.sum(axis=1), 1e-300))[:, None]
            fitted *= wanted_columns / np.maximum(fitted.sum(axis=0), 1e-300)
            if np.allclose(fitted.sum(axis=1), wanted_rows, rtol=0, atol=1e-9):
                break
        i, j = np.nonzero(fitted > 1e-9)
        weight = np.sqrt(fitted[i, j])
        design = np.hstack([np.eye(len(rows))[i], np.eye(len(columns))[j]]) * weight[:, None]
        leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
        spread = weight * np.sqrt(np.clip(1 - leverage, 0, None))
        free = leverage < 1 - 1e-9  # a cell that its margins determine cannot stand out
        cells = rows[i[free]], columns[j[free]]
        expected[rows[i], columns[j]] = fitted[i, j]
        residuals[cells] = (errors[cells] - fitted[i, j][free]) / spread[free]
    return _cell_tests(errors, expected, residuals, names)


def _cell_tests(
    counts: np.ndarray, expected: np.ndarray, residuals: np.ndarray, names: Sequence[str]
) -> dict:
    tested = np.isfinite(residuals)
    p_adjusted = np.full(residuals.shape, np.nan)
    p_adjusted[tested] = holm(2 * stats.norm.sf(np.abs(residuals[tested])))
    exceeding = [
        {
            "truth": names[i],
            "prediction": names[j],
            "count": int(counts[i, j]),
            "expected": float(expected[i, j]),
            "residual": float(residuals[i, j]),
        }
        for i, j in np.argwhere(tested & (residuals > 0) & (p_adjusted < 0.05))
        if i != j
    ]
    return {
        "residuals": residuals,
        "p_adjusted": p_adjusted,
        "exceeding": sorted(exceeding, key=lambda cell: -cell["residual"]),
        "small_expected": int((expected[tested] < 5).sum()),
    }


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's step-down correction of p values (M,): each at most 1, order kept."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def chi_square_text(result: Mapping) -> str:
    """Return the answer of `chi_square` as lines for people, the original's lists included."""
    if result["statistic"] is None:
        lines = [f"chi-square: {result['note']}"]
    else:
        p_value = result["p_value"]
        shown = "< 1e-300" if p_value < 1e-300 else f"{p_value:.3g}"  # it may have underflowed to 0
        lines = [
            f"chi-square {result['statistic']:.2f}, p {shown}, "
            f"{result['dof']} degrees of freedom, n {result['n']:,}, "
            f"Cramér's V {result['cramers_v']:.3f}",
            "truth and prediction are related (p < 0.05), as in any model better than chance"
            if result["significant"]
            else "no sign that truth and prediction are related (p >= 0.05)",
        ]
        if result["note"]:
            lines.append(f"note: {result['note']}")
    for title, part in (
        ("confusions above chance", result),
        ("confusions that stand out among the errors", result["among_errors"]),
    ):
        lines.append(f"{title} (Holm-corrected p < 0.05):")
        if part["small_expected"]:
            lines.append(f"  rough: cells that expect fewer than 5 faces: {part['small_expected']}")
        lines += [
            f"  {c['truth']} -> {c['prediction']}: {c['count']} for {c['expected']:.1f} expected "
            f"(residual {c['residual']:+.1f})"
            for c in part["exceeding"]
        ] or ["  none"]
    lines.append("high confusions:")
    lines += [
        f"  {c['truth']} -> {c['prediction']}: {100 * c['share']:.1f} % ({c['count']})"
        for c in result["high_confusions"]
    ] or ["  none"]
    lines.append("weak classes:")
    for each in result["weak_classes"]:
        targets = ", ".join(f"{t['prediction']} {100 * t['share']:.1f} %" for t in each["targets"])
        lines.append(
            f"  {each['name']}: {100 * each['accuracy']:.1f} % right"
            + (targets and f", taken for {targets}")
        )
    if not result["weak_classes"]:
        lines.append("  none")
    return "\n".join(lines)
