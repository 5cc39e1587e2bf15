"""The model card: only what the folder says, safely, and honest about what is not known."""

import json
import re

import pytest

from fer_helpers.comparison import write_made_up_run
from fer_helpers.model_card import escape, model_card
from fer_helpers.records import write_metrics
from fer_helpers.runs import RunError, open_run


@pytest.fixture
def run(tmp_path):
    return write_made_up_run(tmp_path, "a run")


def metrics_of(run):
    return json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))


def made_real(run, tmp_path, **more):
    """The same numbers under the name of real data."""
    metrics = json.loads(json.dumps(metrics_of(run)).replace('"drawn"', '"real"'))
    for result in metrics["results"]:
        result["stamp"]["dataset"] = "FER2013"
    real = open_run(tmp_path, "real", {"SEED": 0}, {}, origin="real")
    write_metrics(real, metrics | more)
    return real


def test_the_card_has_the_numbers_of_the_metrics(run):
    text = model_card(run)
    assert (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8") == text
    for result in metrics_of(run)["results"]:
        line = next(line for line in text.splitlines() if result["stamp"]["split"] in line[:40])
        if line.startswith("#"):
            line = next(x for x in text.splitlines() if x.startswith("| made-up PublicTest"))
        for numbers in (result["numbers"], result["leak_free"]):
            low, high = numbers["accuracy_interval"]
            shown = f"{100 * numbers['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            assert shown in line
        assert str(result["stamp"]["n"]) in line
        assert result["stamp"]["selection_set"] in line
    headline = metrics_of(run)["results"][0]
    for name, row in headline["numbers"]["per_class"].items():
        line = next(x for x in text.splitlines() if x.startswith(f"| {name} (drawn)"))
        assert f"| {row['support']} | {100 * row['recall']:.1f} %" in line
        assert f"{100 * row['precision']:.1f} %" in line
        assert f"{100 * row['f1']:.1f} %" in line


def test_the_worst_confusion_is_first(run):
    confusion = metrics_of(run)["results"][0]["numbers"]["confusion"]
    shares = [
        (count / sum(row), count)
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j
    ]
    share, count = max(shares)
    lines = model_card(run).splitlines()
    first = lines[lines.index("Worst confusions:") + 4]
    assert f"| {count} |" in first
    assert f"{100 * share:.1f} %" in first


def test_the_card_is_the_same_twice_and_says_what_it_must(run):
    text = model_card(run)
    assert model_card(run.folder) == text
    for words in (
        "No demographic labels exist here; nothing is known about groups",
        "Not for deciding about people",
        "contains the selection split",
        "Not measured in this run: blur, pose, size",
        "Intended",
    ):
        assert words in text


def test_every_line_with_a_number_says_drawn(run):
    for line in model_card(run).splitlines():
        if re.search(r"\d", line.replace("[95 %]", "")):
            assert "drawn" in line, line


def test_a_real_run_names_terms_and_never_says_drawn(run, tmp_path):
    text = model_card(made_real(run, tmp_path))
    assert "terms were not verified" in text
    assert "drawn" not in text.lower()
    assert "not marked as finished" in text


def test_the_card_says_what_the_network_started_from(run):
    assert "Started from" not in model_card(run)
    params = run.folder / "params.yaml"
    params.write_text("PRETRAINED: imagenet\n", encoding="utf-8")
    assert "Started from" not in model_card(run)
    params.write_text("PRETRAINED: runs/a|b/model.safetensors\n", encoding="utf-8")
    said = "*runs/a&#124;b/model.safetensors*: its data and terms apply too; it may have seen the"
    assert f"- Started from {said} pictures scored here." in model_card(run)


def test_the_card_shows_slices_robustness_and_other_datasets(run, tmp_path):
    result = metrics_of(run)["results"][0]
    real = {**result["stamp"], "origin": "real"}
    third = {"n": 10, "high": 48.0, "accuracy": 0.5, "accuracy_interval": [0.25, 0.75]}
    thirds = [{**third, "name": "low", "low": 48.0}, {**third, "name": "high", "low": 7.0}]
    other = {"stamp": real, "seen": "", "class_names": ["Anger", "Sad"], "left_out": 3}
    other["numbers"] = result["numbers"]
    more = {
        "robustness": {"stamp": real, "accuracy": {"blur": [0.8, 0.6], "noise": [0.8, 0.7]}},
        "slices": {"stamp": real, "parts": {"sharpness": thirds, "size": thirds[:1]}},
        "abstain": {
            **{"stamp": real, "threshold": 0.55, "coverage": 0.78, "accuracy": 0.91},
            "leak_free": {"threshold": 0.55, "coverage": 0.75, "accuracy": 0.9, "n": 80},
        },
        "cross_dataset": [
            {**other, "leak_free": result["leak_free"]},
            {**other, "seen": "FER2013 was used (train)"},
        ],
    }
    text = model_card(made_real(run, tmp_path, **more))
    assert "| blur | 80.0 % | 60.0 % |" in text
    assert "| high (7 to 48) | 10 | 50.0 % [25.0, 75.0] |" in text
    assert "from a confidence of 55.0 % on (chosen on the selection set), it answers 78.0 %" in text
    answered = "it answers 78.0 % of the pictures (n = 117) and is right about 90.6 % [83.9, 94.7]"
    assert answered in text  # of 150
    free = "of these; leak-free 75.0 % of the pictures (n = 60) and is right about 90.0 % [79.9, "
    assert free in text
    twin = f"n = {result['leak_free']['n']} |"
    assert f"{twin} no exact copy found in any phase |" in text
    assert "(*seen*)" in text and "| – | FER2013 was used (train) |" in text
    assert "Not measured in this run: pose, size (every picture has 48 pixels)." in text


def test_what_a_turn_says_about_pose_and_blur_about_sharpness(run, tmp_path):
    real = {**metrics_of(run)["results"][0]["stamp"], "origin": "real"}
    damage = {"stamp": real, "accuracy": {"blur": [0.8, 0.6], "rotation": [0.8, 0.7]}}
    lines = model_card(made_real(run, tmp_path, robustness=damage)).splitlines()
    said = next(line for line in lines if line.startswith("Not measured in this run"))
    assert "pose other than a turn in the picture's plane" in said
    assert "size" in said
    assert "blur" not in said


def test_the_card_speaks_of_the_last_phase(run, tmp_path):
    two = metrics_of(run)
    earlier = json.loads(json.dumps(two["results"][0]))
    earlier["stamp"] |= {"dataset": "AffectNet", "note": "the network after phase 1"}
    assert earlier["headline"]
    write_metrics(run, {**two, "results": [*two["results"], earlier]})
    scores, rest = model_card(run).split("## How far its confidence")
    assert "AffectNet" in scores and "AffectNet" not in rest


def test_a_set_of_twins_only_is_said_to_have_no_other_image(run):
    metrics = metrics_of(run)
    metrics["results"][1]["leak_free"] = None
    write_metrics(run, metrics)
    lines = model_card(run).splitlines()
    [line] = [line for line in lines if "no image without a twin" in line]
    assert line.startswith("| made-up PublicTest")


def test_calibration_stands_beside_what_a_calibrated_model_would_show(run):
    numbers = metrics_of(run)["results"][0]["numbers"]
    low, high = numbers["ece_calibrated_range"]
    [line] = [x for x in model_card(run).splitlines() if "(ECE)" in x]
    assert f"differ by {100 * numbers['ece']:.1f} % on average" in line
    assert f"{100 * low:.1f} % to {100 * high:.1f} %" in line


def test_names_are_escaped(tmp_path):
    odd = "<script>|$x$ & *b* `c` [d](e) _f_ my_run"
    assert escape(odd) == (
        "&lt;script&gt;&#124;&#36;x&#36; &amp; &#42;b&#42; &#96;c&#96; "
        "&#91;d&#93;(e) &#95;f&#95; my_run"
    )
    run = write_made_up_run(tmp_path, "a & $b")
    path = run.folder / "metrics.json"
    path.write_text(path.read_text(encoding="utf-8").replace("Anger", "<b>|$"), encoding="utf-8")
    text = model_card(run)
    assert "<b>" not in text
    assert "&lt;b&gt;&#124;&#36;" in text
    tables = [line for line in text.splitlines() if line.startswith("| &lt;b&gt;")]
    assert tables
    assert "# Model card: a &amp; &#36;b" in text


def test_no_metrics_no_card(tmp_path):
    run = open_run(tmp_path, "a", {}, {}, origin="drawn")
    with pytest.raises(RunError, match=r"metrics\.json"):
        model_card(run)
