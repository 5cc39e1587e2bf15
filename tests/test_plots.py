"""Figures: they exist, leave nothing open, survive odd names, and show what they should."""

import base64
import io
import re
import tempfile
from functools import cache

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image
from test_confusions import NAMES
from test_confusions import ORIGINAL as CONFUSION

from fer_helpers import comparison, plots
from fer_helpers.evaluation import (
    abstain_threshold,
    answered_above,
    chi_square,
    class_scores,
    reliability,
    risk_coverage,
    softmax,
)
from fer_helpers.exploration import precision_recall

matplotlib.use("Agg")

ODD = (
    "$x$",
    "_hidden",
    "<b>&",
    "two\nlines",
    "a name that is far too long for a tick",
    "$",
    "\\frac",
)
HISTORY = [
    {
        "epoch": e,
        "train_loss": 2 / e,
        "train_accuracy": 1 - 1 / (e + 1),
        "selection_loss": 2.1 / e,
        "selection_accuracy": 0.9 - 0.5 / e,
        "selection_macro_f1": 0.8 - 0.5 / e,
    }
    for e in range(1, 5)
]


def faces(n=6, side=48, channels=1):
    y, x = np.mgrid[:side, :side] / side
    waves = [120 + 100 * np.sin(5 * x + k) * np.cos(4 * y * k) for k in range(1, n + 1)]
    return np.stack([waves] * channels, axis=-1).astype(np.uint8)


def answers(n=300):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(n, 7))
    labels = generator.integers(0, 7, n)
    logits[np.arange(n), labels] += 1.5
    return softmax(logits), labels


def per_class(names):
    each = class_scores(CONFUSION)
    return {
        name: {key: float(values[k]) for key, values in each.items()}
        for k, name in enumerate(names)
    }


def suspects(n):
    return [
        {
            "label": "Anger",
            "votes_say": "Surprise",
            "votes_for_label": 0.1,
            "votes_for_winner": 0.9,
            "predicted": "Surprise",
            "confidence": 0.5,
        }
    ] * n


@cache
def made_up_runs():
    """As many as have two rows of names in the legend, which are as long as are shown whole."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(4):
            comparison.write_made_up_run(folder, f"a run of the recipe number {seed:06}", seed=seed)
        return comparison.read_runs(comparison.find_runs(folder))[0]


def draws(names):
    """How to draw every figure of the module, by name."""
    probabilities, labels = answers()
    note = {"note": "drawn faces"}
    points = np.random.default_rng(0).normal(size=(300, 2))
    return {
        "class_counts": lambda: plots.plot_class_counts(
            {"train": CONFUSION.sum(axis=1), "_test": CONFUSION[0]}, names, **note
        ),
        "samples": lambda: plots.plot_samples([faces(3), faces(2)], names[:2], **note),
        "augmentation": lambda: plots.plot_augmentation(faces(4, 112, 3), faces(4), **note),
        "history": lambda: plots.plot_history(HISTORY, phase=names[0], best_epoch=3, **note),
        "confusion": lambda: plots.plot_confusion(CONFUSION, names, **note),
        "class_accuracy": lambda: plots.plot_class_accuracy(CONFUSION, names, **note),
        "class_scores": lambda: plots.plot_class_scores(per_class(names), **note),
        "mistakes": lambda: plots.plot_mistakes(
            faces(6), names[:6], names[1:], np.full(6, 0.5), **note
        ),
        "prediction": lambda: plots.plot_prediction(faces(1)[0], probabilities[0], names, **note),
        "reliability": lambda: plots.plot_reliability(
            reliability(probabilities, labels), reliability(probabilities, labels), **note
        ),
        "risk_coverage": lambda: plots.plot_risk_coverage(
            risk_coverage(probabilities, labels), abstain_threshold(probabilities, labels), **note
        ),
        "precision_recall": lambda: plots.plot_precision_recall(
            precision_recall(probabilities, labels, names), names, **note
        ),
        "embedding": lambda: plots.plot_embedding(points, labels, names, **note),
        "residuals": lambda: plots.plot_residuals(chi_square(CONFUSION, names), names, **note),
        "robustness": lambda: plots.plot_robustness({names[1]: np.linspace(0.7, 0.2, 6)}, **note),
        "mcnemar": lambda: plots.plot_mcnemar(
            [[np.nan, 0.01], [0.01, np.nan]],
            names[:2],
            title="FER2013 Public + Private: McNemar, p-values after Holm",
            note="contains the selection split, drawn faces",
        ),
        "intervals": lambda: comparison.plot_intervals(comparison.compare(made_up_runs())),
        "histories": lambda: comparison.plot_histories(made_up_runs()),
        "attention": lambda: plots.plot_attention(
            faces(3),
            {
                "mask": np.linspace(0.2, 0.8, 147).reshape(3, 7, 7),
                "Grad-CAM": np.linspace(0, 1, 243).reshape(3, 9, 9),
            },
            names[:3],
            **note,
        ),
        "suspects": lambda: plots.plot_suspects(faces(7), suspects(7), **note),
    }


@pytest.fixture(scope="module")
def figures():
    return {name: draw() for name, draw in draws(NAMES).items()}


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]


GALLERIES = ("samples", "augmentation", "mistakes", "attention", "suspects")


def test_every_plot_function_is_drawn_here(figures):
    offered = {*plots.__all__, *vars(comparison)}
    assert {f"plot_{name}" for name in figures} == {n for n in offered if n.startswith("plot_")}


def test_figures_are_returned_closed_and_say_where_the_data_comes_from(figures):
    assert plt.get_fignums() == []
    for name, figure in figures.items():
        assert isinstance(figure, Figure), name
        assert any(text.endswith("drawn faces") for text in texts(figure)), name


def test_a_figure_is_a_small_opaque_png(figures):
    for name, figure in figures.items():
        raw = plots.png_bytes(figure)
        picture = Image.open(io.BytesIO(raw))
        assert len(raw) < 60_000, name
        assert picture.width <= 960, name
        assert picture.convert("RGBA").getpixel((1, 1)) == (255, 255, 255, 255), name
    assert plt.get_fignums() == []


@pytest.mark.slow
def test_a_notebook_shows_this_png_once_and_not_the_one_of_its_backend():
    code = (
        "from fer_helpers.plots import plot_class_accuracy\n"
        "plot_class_accuracy([[3, 1], [0, 2]], ('Happy', 'Sad'))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    [output] = notebook.cells[0].outputs
    assert set(output["data"]) == {"image/png", "text/plain"}
    raw = base64.b64decode(output["data"]["image/png"])
    assert raw == plots.png_bytes(plots.plot_class_accuracy([[3, 1], [0, 2]], ("Happy", "Sad")))


def test_no_text_leaves_the_figure_and_no_two_titles_overlap(figures):
    for name, figure in figures.items():
        figure.set_canvas(matplotlib.backends.backend_agg.FigureCanvasAgg(figure))
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for box in boxes:
            assert min(box.x0, box.y0) >= -2, name
            assert box.x1 <= width + 2, name
            assert box.y1 <= height + 2, name
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :]), name
        for ax in (ax for ax in figure.axes if ax.axison):
            for label in (ax.xaxis.label, *ax.get_xticklabels()):
                if label.get_text():
                    box = label.get_window_extent()
                    assert not any(box.overlaps(other) for other in boxes), name


def test_captions_of_neighbors_do_not_touch(figures):
    for name in GALLERIES:
        boxes = [text.get_window_extent() for text in figures[name].axes[0].texts]
        for k, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[k + 1 :]), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    ["class_counts", "history", "confusion", "class_accuracy", "mistakes", "precision_recall"],
)
def test_names_are_names_not_formulas(name):
    figure = draws(ODD)[name]()
    assert any("$x$" in text for text in texts(figure))
    if name == "precision_recall":
        assert len(figure.legends[0].get_texts()) == 7  # "_hidden" included


def test_saving_twice_gives_the_same_bytes_without_a_date(tmp_path):
    first = plots.savefig(plots.plot_confusion(CONFUSION, NAMES), tmp_path / "new" / "a", "matrix")
    second = plots.savefig(plots.plot_confusion(CONFUSION, NAMES), tmp_path / "b", "matrix")
    assert [path.name for path in first] == ["matrix.png", "matrix.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", first[1].read_text(encoding="utf-8"))


def test_the_users_style_and_settings_are_left_alone():
    with plt.style.context("dark_background"):
        before = dict(plt.rcParams)
        figure = plots.plot_class_accuracy(CONFUSION, NAMES)
        assert dict(plt.rcParams) == before
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert figure.axes[0].get_xticklabels()[0].get_color() == "black"


def test_confusion_shows_counts_and_shares_in_the_given_order(figures):
    counts, shares = figures["confusion"].axes
    assert [t.get_text() for t in counts.get_xticklabels()] == list(NAMES)
    assert [t.get_text() for t in counts.get_yticklabels()] == list(NAMES)
    assert "1,514" in [t.get_text() for t in counts.texts]
    assert "85.3" in [t.get_text() for t in shares.texts]


@pytest.mark.filterwarnings("error")
def test_absent_and_never_predicted_classes_are_drawn_without_warnings():
    confusion = CONFUSION.copy()
    confusion[1] = confusion[:, 6] = 0
    dashes = [t.get_text() for t in plots.plot_confusion(confusion, NAMES).axes[1].texts]
    assert dashes.count("–") == 7
    assert "no image" in texts(plots.plot_class_accuracy(confusion, NAMES))
    plots.plot_residuals(chi_square(confusion, NAMES), NAMES)
    plots.plot_residuals(chi_square(np.zeros((7, 7)), NAMES), NAMES)
    plots.plot_reliability(reliability(np.eye(7), np.arange(7)))


def test_a_narrow_range_of_percent_has_no_label_twice():
    curve = risk_coverage(np.array([[0.9, 0.1]]), np.array([0]))
    ax = plots.plot_risk_coverage(curve).axes[0]
    risks = [t.get_text() for t in ax.get_yticklabels()]
    assert len(risks) == len(set(risks)) and {"0 %", "1 %", "2 %"} <= set(risks)
    assert "40 %" in [t.get_text() for t in ax.get_xticklabels()]


def test_large_residuals_fit_into_their_cells():
    figure = plots.plot_residuals(
        chi_square(100 * np.diag(np.full(8, 999)), "ABCDEFGH"), "ABCDEFGH"
    )
    said = texts(figure)
    assert "+894*" in said and "-128*" in said
    assert "+46.3*" in texts(plots.plot_residuals(chi_square(CONFUSION, NAMES), NAMES))


@pytest.mark.filterwarnings("error")
def test_short_and_partial_histories():
    one = plots.plot_history(HISTORY[:1], phase="Phase 1", selection_name="val")
    assert [t.get_text() for t in one.legends[0].get_texts()] == [
        "training",
        "val",
        "val, macro-F1",
    ]
    bare = [{"epoch": 0, "train_loss": 1.0, "train_accuracy": 0.5, "selection_loss": None}]
    assert len(plots.plot_history(bare).legends[0].get_texts()) == 1
    with pytest.raises(ValueError, match="no epoch"):
        plots.plot_history([])


def test_a_threshold_shows_what_is_left_and_none_above_every_confidence():
    probabilities, labels = answers()
    curve = risk_coverage(probabilities, labels)
    chosen = abstain_threshold(probabilities, labels, coverage=0.5)
    said = texts(plots.plot_risk_coverage(curve, chosen))
    shares = f"{100 * chosen['coverage']:.1f} % of the faces"
    assert any(shares in t and f"{100 * chosen['accuracy']:.1f} % right" in t for t in said)
    silent = plots.plot_risk_coverage(curve, answered_above(probabilities, labels, 1.0))
    assert "answered from confidence 100 %: no face" in texts(silent)


def test_numbers_of_many_classes_do_not_run_into_each_other():
    names = [f"class {k}" for k in range(16)]
    confusion = np.full((16, 16), 1234)
    each = {name: dict.fromkeys(("precision", "recall", "f1"), 0.5) for name in names}
    scores = {name: row | {"support": 1} for name, row in each.items()}
    for figure in (plots.plot_confusion(confusion, names), plots.plot_class_scores(scores)):
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        for k, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[k + 1 :])


def test_small_faces_are_enlarged_pixel_by_pixel():
    figure = plots.plot_samples([faces(2)], ["Anger"])
    canvas = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(canvas[:96:2, :96:2], canvas[1:96:2, 1:96:2])
    assert np.abs(canvas[:96:2, :96:2].astype(int) - faces(2)[0]).max() <= 4
    mixed = plots.plot_samples([faces(2, 75, 3), faces(3, 48)], ["a", "b"])
    assert mixed.axes[0].images[0].get_array().shape[1] == 3 * 116 - 6


def test_each_kind_of_map_has_its_row_and_its_own_range(figures):
    assert {"face", "mask 0.20–0.80", "Grad-CAM 0.00–1.00"} <= set(texts(figures["attention"]))
    canvas = np.asarray(figures["attention"].axes[0].images[0].get_array(), dtype=int)
    for row in (canvas[102:198], canvas[204:300]):
        lowest, highest = row[:9, :9].mean(axis=(0, 1)), row[-9:, -9:].mean(axis=(0, 1))
        assert lowest[2] > lowest[0] + 10  # dark blue
        assert highest[0] > highest[2] + 10  # bright yellow


def test_highlight_pales_the_other_classes():
    probabilities, labels = answers()
    figure = plots.plot_embedding(probabilities[:, :2], labels, NAMES, highlight=("Sad", "Fear"))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Fear", "Sad"]
    with pytest.raises(ValueError, match="no class 'Joy'"):
        plots.plot_embedding(probabilities[:, :2], labels, NAMES, highlight=("Joy",))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_confusion(CONFUSION, NAMES[:3]), "7 entries for 3 names"),
        (lambda: plots.plot_samples([], []), "no face"),
        (lambda: plots.plot_samples([faces() / 255], ["a"]), "undo the normalization"),
        (lambda: plots.plot_class_counts({"train": [1, 2]}, NAMES), "2 entries for 7 names"),
        (lambda: plots.plot_mistakes(faces(2), ["a"], ["b", "c"], [1, 1]), "truths has 1"),
        (lambda: plots.plot_class_accuracy(np.zeros((7, 7)), NAMES), "counts no image"),
    ],
)
def test_bad_input_leaves_no_figure_open(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert plt.get_fignums() == []
