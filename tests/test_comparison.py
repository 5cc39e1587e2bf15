"""Reading run folders back and comparing them."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from fer_helpers import comparison
from fer_helpers.comparison import compare, read_run, read_runs, write_made_up_run
from fer_helpers.evaluation import mcnemar
from fer_helpers.independence import holm
from fer_helpers.plots import plot_mcnemar
from fer_helpers.records import write_predictions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, skill in (("plain 1", 1, 2.5), ("plain 2", 2, 2.5), ("better", 3, 4.0)):
        write_made_up_run(folder, name, seed=seed, skill=skill)
    return folder


@pytest.fixture(scope="module")
def records(folder):
    records, skipped = read_runs(comparison.find_runs(folder))
    assert not skipped
    return records


def test_a_run_comes_back_as_it_was_written(folder):
    record = read_run(folder / "plain 1")
    written = json.loads((folder / "plain 1" / "metrics.json").read_text(encoding="utf-8"))
    assert record.metrics == written
    assert (record.name, record.origin, record.finished) == ("plain 1", "drawn", True)
    assert record.params == {"SEED": 1, "SKILL": 2.5}
    assert sorted(set(record.history["phase"])) == ["affectnet", "fer2013"]
    assert record.predictions.filter(like="p_").to_numpy().sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_predictions_and_metrics_tell_the_same_accuracy(records):
    for record in records:
        for result in record.metrics["results"]:
            table = record.predictions
            table = table[table["split"] == result["stamp"]["split"]]
            right = table["truth"] == table["prediction"]
            assert right.mean() == pytest.approx(result["numbers"]["accuracy"])
            kept = table["leak_free"] == "True"
            assert right[kept].mean() == pytest.approx(result["leak_free"]["accuracy"])


def test_the_table_has_the_numbers_of_the_metrics(records):
    table = compare(records)
    assert len(table) == 6
    for record in records:
        for result in record.metrics["results"]:
            stamped = result["stamp"]
            line = table[(table["run"] == record.name) & (table["split"] == stamped["split"])]
            line = line.iloc[0]
            assert line["accuracy"] == result["numbers"]["accuracy"]
            assert [line["low"], line["high"]] == result["numbers"]["accuracy_interval"]
            assert line["leak_free_accuracy"] == result["leak_free"]["accuracy"]
            assert line["n"] == stamped["n"]
            assert line["origin"] == "drawn"


def test_seeds_are_summed_up_by_hand(records):
    table = comparison.compare_seeds(records)
    assert list(table["split"]) == ["PrivateTest", "PublicTest"]
    assert list(table["runs"]) == ["plain 1, plain 2"] * 2
    values = [r.metrics["results"][0]["numbers"]["accuracy"] for r in records if "plain" in r.name]
    assert table.loc[0, "mean"] == pytest.approx(np.mean(values))
    assert table.loc[0, "sd"] == pytest.approx(np.std(values, ddof=1))
    assert list(comparison.compare_seeds(records[:2] * 2)["seeds"]) == []
    assert table.loc[0, "low"] < table.loc[0, "mean"] < table.loc[0, "high"]
    other = deepcopy(records)
    (plain,) = [r for r in other if r.name == "plain 2"]
    plain.metrics["results"][0]["stamp"]["content_hash"] = "other pictures"
    assert not len(comparison.compare_seeds(other))
    other = deepcopy(records)
    (plain,) = [r for r in other if r.name == "plain 2"]
    plain.metrics["results"][0]["stamp"]["code"] = "other code"
    assert not len(comparison.compare_seeds(other))
    assert table["note"].tolist() == ["", "contains the selection split"]
    assert table["n"].tolist() == [150, 150]
    # One seed's balanced entry first, the other's last, each with its own tau.
    other = deepcopy([r for r in records if "plain" in r.name])
    for at, tau, record in zip((0, 2), ("0.35", "0.40"), other, strict=True):
        balanced = deepcopy(record.metrics["results"][0])
        balanced["stamp"]["note"] = f"balanced operating point, tau {tau}"
        balanced["numbers"]["accuracy"] -= 0.5
        record.metrics["results"].insert(at, balanced)
    mixed = comparison.compare_seeds(other)
    assert (
        mixed[mixed["note"] != "balanced operating point"].values.tolist() == table.values.tolist()
    )
    assert mixed["mean"][1] == pytest.approx(table["mean"][0] - 0.5)
    stopped = [replace(r, finished=r.name != "plain 2") for r in records]
    assert not len(comparison.compare_seeds(stopped))


def test_mcnemar_is_the_one_on_the_joined_pictures(records):
    pairs = comparison.mcnemar_pairs(records, "made-up", "PrivateTest")
    assert len(pairs) == 3
    right = {}
    for record in records:
        table = record.predictions[record.predictions["split"] == "PrivateTest"]
        right[record.name] = (table["truth"] == table["prediction"]).to_numpy(bool)
    for pair in pairs.to_dict("records"):
        expected = mcnemar(right[pair["run_a"]], right[pair["run_b"]])
        assert pair["p_value"] == expected["p_value"]
        assert pair["difference"] == pytest.approx(expected["difference"])
        assert pair["n"] == 150
        assert pair["low"] < pair["difference"] < pair["high"]
    np.testing.assert_allclose(pairs["p_holm"].astype(float), holm(pairs["p_value"]))
    assert (pairs["p_holm"] > pairs["p_value"]).any()
    matrix = comparison.mcnemar_matrix(pairs)
    assert matrix.loc["better", "plain 1"] == matrix.loc["plain 1", "better"]
    assert matrix.loc["better", "plain 1"] < 0.05
    assert np.isnan(np.diag(matrix)).all()


@pytest.mark.parametrize(
    ("files", "labels", "note"),
    [
        (["x.png", "y.png"], [0, 1], "no file in common"),
        (["test/PrivateTest_0.png", "y.png"], None, "only the files that both have"),
        (["test/PrivateTest_0.png", "y.png"], "other", "1 of 1 labels differ"),
        (["a.png", "a.png"], [0, 1], "not unique"),
    ],
)
def test_runs_on_other_pictures_are_not_tested_silently(tmp_path, files, labels, note):
    first = write_made_up_run(tmp_path, "first")
    table = read_run(first.folder).predictions
    truth = table[table["file"] == "test/PrivateTest_0.png"]["truth"].iloc[0]
    classes = ("Anger", "Happy", "Sad", "Surprise")
    if not isinstance(labels, list):
        labels = [(classes.index(truth) + (labels == "other")) % 4, 0]
    second = write_made_up_run(tmp_path, "second")
    write_predictions(
        second,
        files=files,
        labels=np.array(labels),
        probabilities=np.full((2, 4), 0.25),
        class_names=classes,
        dataset="made-up",
        split="PrivateTest",
        leak_free=np.ones(2, bool),
    )
    records, _ = read_runs([first.folder, second.folder])
    pairs = comparison.mcnemar_pairs(records, "made-up", "PrivateTest")
    assert note in pairs.loc[0, "note"]
    assert np.isnan(pairs.loc[0, "p_value"]) == (note != "only the files that both have")
    assert comparison.mcnemar_pairs(records, "made-up", "nowhere").loc[0, "note"].startswith("one")


def test_equal_file_names_are_not_taken_for_equal_pictures(tmp_path):
    runs = [write_made_up_run(tmp_path, name).folder for name in ("first", "second")]
    path = runs[1] / "metrics.json"
    path.write_text(path.read_text().replace('"content_hash": "made-up"', '"content_hash": "new"'))
    pairs = comparison.mcnemar_pairs(read_runs(runs)[0], "made-up", "PrivateTest")
    assert "content hashes differ" in pairs.loc[0, "note"]
    assert np.isnan(pairs.loc[0, "p_value"])


def test_broken_folders_are_skipped_with_a_sentence(tmp_path):
    whole = write_made_up_run(tmp_path, "whole")
    (tmp_path / "empty").mkdir()
    for name, file, text in (
        ("stopped", "metrics.json", None),
        ("cut", "metrics.json", '{"origin": "dr'),
        ("hollow", "metrics.json", '{"origin": "drawn", "results": []}'),
        ("foreign", "metrics.json", '{"origin": "drawn", "results": [[]]}'),
        ("list", "metrics.json", "[]"),
        ("old", "history.csv", "epoch\n1\n"),
        ("garbage", "predictions.csv", "\xff\x00"),
    ):
        run = write_made_up_run(tmp_path, name)
        if text is None:
            (run.folder / file).unlink()
        else:
            (run.folder / file).write_text(text, encoding="latin-1")
    names = ["whole", "empty", "stopped", "cut", "hollow", "foreign", "list", "old", "garbage"]
    records, skipped = read_runs([tmp_path / name for name in [*names, "nowhere"]])
    assert [record.name for record in records] == [whole.name]
    assert len(skipped) == 9
    for name, sentence in zip([*names[1:], "nowhere"], skipped, strict=True):
        assert sentence.startswith("Skipped: ")
        assert name in sentence
        assert "\n" not in sentence


def test_runs_without_history_or_predictions_are_still_compared(tmp_path):
    run = write_made_up_run(tmp_path, "a")
    for name in ("history.csv", "predictions.csv"):
        (run.folder / name).unlink()
    records, skipped = read_runs([run.folder])
    assert not skipped
    assert len(compare(records)) == 2
    comparison.plot_histories(records)


def test_equal_names_are_told_apart(tmp_path):
    folders = [write_made_up_run(tmp_path / place, "a").folder for place in ("x", "y")]
    records, _ = read_runs(folders)
    assert [record.name for record in records] == ["x/a", "y/a"]


def test_a_folder_named_twice_is_one_run(tmp_path):
    folder = write_made_up_run(tmp_path, "a").folder
    records, _ = read_runs([folder, str(folder), folder / ".." / "a"])
    assert [record.name for record in records] == ["a"]


def test_figures_say_drawn_and_take_any_name(tmp_path, records):
    odd = [replace(records[0], name="_ a $x <b> & $y")]
    for figure, shows_runs in (
        (comparison.plot_intervals(compare([*records, *odd])), True),
        (comparison.plot_histories([*records, *odd]), True),
        (comparison.plot_histories(records, "nothing"), False),
    ):
        figure.savefig(tmp_path / "figure.png")
        assert ("drawn faces" in [text.get_text() for text in figure.texts]) is shows_runs


def test_a_run_has_one_color_in_the_figures_of_all_columns(records):
    silent = replace(records[0], history=records[0].history.drop(columns="train_loss"))
    runs = [silent, *records[1:]]
    colors = [
        [line.get_color() for line in comparison.plot_histories(runs, column).axes[0].get_lines()]
        for column in ("selection_accuracy", "train_loss")
    ]
    assert colors[0][1:] == colors[1]


def test_figures_have_room_for_many_runs(records):
    many = [replace(records[0], name=f"run {k}") for k in range(30)]
    for runs in (records, many):
        figure = comparison.plot_histories(runs)
        assert figure.axes[0].get_position().height * figure.get_figheight() > 1.6  # inches
    names = [record.name for record in many]
    assert plot_mcnemar(np.full((30, 30), 0.5), names).get_figwidth() < 14


def test_an_interval_of_few_draws_may_leave_out_its_value(records):
    table = compare(records)
    table["low"] = table["accuracy"] + 0.01
    comparison.plot_intervals(table)
