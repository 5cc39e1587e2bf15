import numpy as np
import pytest

from fer_helpers import protocol
from fer_helpers.augment import Augment
from fer_helpers.data import load_fer2013
from fer_helpers.evaluation import evaluate, fit_tau, fit_temperature, logit_adjust
from fer_helpers.models import build_model
from fer_helpers.protocol import (
    balance,
    describe_selection,
    points_table,
    score_table,
    score_tests,
)
from fer_helpers.splits import SelectionSet, Splits, TestSet
from tests.faces_on_disk import write_fer
from tests.tiny import PREPROCESS, faces, net, scored_faces, selection_faces, train

LEAK_FREE = np.arange(12) % 4 != 0


def splits(selection=True, **more):
    private = scored_faces(leak_free=LEAK_FREE, **{"labels": None, **more})
    public = scored_faces(9, split="PublicTest", stamp="contains the selection split")
    chosen = selection_faces() if selection else None
    rarer = faces(labels=np.repeat([0, 1, 2], [16, 6, 2]))
    return Splits(rarer, chosen, (private, public), sentence="Tiny.")


@pytest.fixture
def asked(monkeypatch):
    """Give fixed logits, right more often than not, and tell which sets were asked about."""
    asked = []

    def logits(model, given, preprocess, *, views, **_):
        asked.append((type(given), given.split, views))
        draw = np.random.default_rng([len(given), views])
        noise = draw.normal(size=(len(given), 3)) * 3
        return (noise + 4 * np.eye(3)[given.labels]).astype(np.float32)

    monkeypatch.setattr(protocol, "predict_logits", logits)
    return asked


def score(given, **more):
    return score_tests(net(), given, PREPROCESS, **{"bootstrap": 50, "views": 4, **more})


def test_every_set_is_passed_once_for_each_number_of_views(asked):
    score(splits())
    assert len(asked) == len(set(asked)) == 6
    assert {views for _, _, views in asked} == {1, 4}
    asked.clear()
    score(splits(), views=1)
    assert asked == [
        (SelectionSet, "selection", 1), (TestSet, "test", 1), (TestSet, "PublicTest", 1),
    ]  # fmt: skip


def test_temperature_comes_from_the_selection_set_alone(asked):
    given = splits()
    results, temperature, _ = score(given)
    logits = protocol.predict_logits(None, given.selection, None, views=1)
    assert temperature == fit_temperature(logits, given.selection.labels)
    views = protocol.predict_logits(None, given.selection, None, views=4)
    of_views = fit_temperature(views, given.selection.labels)
    assert len({1, round(temperature, 1), round(of_views, 1)}) == 3
    for result in results:
        found = [entry["numbers"]["temperature"] for entry in result.entries]
        assert found == pytest.approx([temperature, of_views])
        assert result.temperatures == pytest.approx({"4": of_views})
    # Other answers of the test set change nothing.
    other = splits(labels=(np.arange(12) + 1) % 3)
    assert score(other)[1] == temperature


def test_nothing_is_fitted_without_a_selection_set(asked):
    results, temperature, chosen_on = score(splits(selection=False))
    assert temperature == 1 and chosen_on is None
    assert results[0].entries[0]["stamp"]["selection_set"] == "none"


def test_a_set_to_score_cannot_be_learned_or_chosen_on():
    learned, chosen, scored = faces(), selection_faces(), scored_faces()
    Splits(learned, None, (scored,), "")
    for wrong in ((scored, chosen, (scored,)), (learned, scored, (scored,)),
                  (learned, chosen, (chosen,))):  # fmt: skip
        with pytest.raises(TypeError, match="kept apart: give it a"):
            Splits(*wrong, "")


def test_headline_is_the_first_set_with_one_view(asked):
    results, _, _ = score(splits())
    assert [result.test.split for result in results] == ["test", "PublicTest"]
    headlines = [entry["headline"] for result in results for entry in result.entries]
    assert headlines == [True, False, False, False]
    assert results[0].numbers is results[0].entries[0]["numbers"]


def test_stamps(asked):
    results, _, _ = score(splits(), seed=7, note="training was stopped early")
    about = results[0].entries[1]["stamp"]
    assert about["dataset"] == "Tiny" and about["split"] == "test"
    assert (about["n"], about["views"], about["seed"]) == (12, 4, 7)
    assert about["selection_set"] == "Tiny selection (9)"
    assert (about["origin"], about["content_hash"]) == ("drawn", "0" * 64)
    assert (about["device"], about["precision"]) == ("cpu", "fp32")
    assert about["note"] == "training was stopped early"
    assert results[1].entries[0]["stamp"]["note"] == (
        "contains the selection split; training was stopped early"
    )


def test_leak_free_twin_equals_one_made_by_hand(asked):
    results, temperature, _ = score(splits())
    test, twin = results[0].test, results[0].entries[0]["leak_free"]
    right = results[0].logits.argmax(1) == test.labels
    assert twin["n"] == LEAK_FREE.sum() == 9
    assert twin["accuracy"] == right[LEAK_FREE].mean()
    assert results[0].numbers["accuracy"] == right.mean()
    by_hand = evaluate(
        results[0].logits[LEAK_FREE], test.labels[LEAK_FREE], test.class_names,
        temperature=temperature, bootstrap=50,
    )  # fmt: skip
    assert twin == by_hand


def test_a_set_of_twins_only_has_no_leak_free_number(asked):
    results, _, _ = score(Splits(faces(), None, (scored_faces(leak_free=np.zeros(12, bool)),), ""))
    assert results[0].entries[0]["leak_free"] is None
    table = score_table(results)
    assert table["leak-free n"].tolist() == [0, 0]
    assert table["leak-free accuracy"].isna().all()


def test_one_view_is_the_plain_logits():
    from fer_helpers.inference import predict_logits

    results, _, _ = score(splits())
    assert np.array_equal(results[0].logits, predict_logits(net(), results[0].test, PREPROCESS))


def test_scoring_twice_gives_the_same_numbers():
    entries = [[entry for result in score(splits())[0] for entry in result.entries] for _ in "12"]
    assert entries[0] == entries[1]


def test_table(asked):
    table = score_table(score(splits())[0])
    assert table["set"].tolist() == ["Tiny test", "Tiny test", "Tiny PublicTest", "Tiny PublicTest"]
    assert table["views"].tolist() == [1, 4, 1, 4]
    assert table["note"][0] == "headline, drawn faces"
    assert table["note"][2] == "contains the selection split, drawn faces"
    low, high = map(float, table["95 % interval"][0].split(" to "))
    assert 0 <= low <= table["accuracy"][0] <= high <= 100


def test_table_without_intervals(asked):
    table = score_table(score(splits(), bootstrap=0)[0])
    assert set(table["95 % interval"]) == {""}


def test_what_was_chosen_on_in_words():
    assert describe_selection(None) == "none"
    assert describe_selection(selection_faces(n=1200)) == "Tiny selection (1,200)"


def test_the_balanced_point_is_chosen_on_the_selection_set_and_says_so(asked):
    given = splits()
    results, _, chosen_on = score(given)
    asked.clear()
    balanced, shift = balance(results[0], given, chosen_on, bootstrap=50)
    assert not asked  # no set is passed again
    np.testing.assert_array_equal(
        chosen_on, protocol.predict_logits(None, given.selection, None, views=1)
    )
    prior = given.train.counts()
    tau = fit_tau(chosen_on, given.selection.labels, prior)
    assert tau > 0
    np.testing.assert_allclose(shift, -tau * np.log(prior / prior.sum()))
    np.testing.assert_allclose(balanced.logits, logit_adjust(results[0].logits, prior, tau))
    (entry,) = balanced.entries
    assert entry["stamp"]["note"] == f"balanced operating point, tau {tau:.2f}"
    assert not entry["headline"]
    assert entry["numbers"]["temperature"] == results[0].numbers["temperature"] != 1
    assert entry["leak_free"]["n"] == LEAK_FREE.sum()
    table = points_table(results[0], balanced)
    assert list(table.index) == ["as trained", f"balanced, tau {tau:.2f}"]
    right = (balanced.logits.argmax(1) == given.tests[0].labels).mean()
    assert table["accuracy"].iloc[1] == pytest.approx(100 * right, abs=0.05)
    assert table["macro-F1"].iloc[1] == round(entry["numbers"]["macro_f1"], 3) <= 1


def test_without_a_selection_set_there_is_no_balanced_point(asked):
    given = splits(selection=False)
    with pytest.raises(ValueError, match="SELECTION_SIZE"):
        balance(score(given)[0][0], given, None)


@pytest.mark.slow
def test_a_run_from_folders_of_noise_scores_at_chance(tmp_path):
    """Nothing can be learned but the very pictures, so test pictures in train would show."""
    root = write_fer(tmp_path / "fer2013", train=20, public=20, private=20)
    given = load_fer2013(root / "train", root / "test", cache_dir=tmp_path)
    seven = build_model(7, backbone="resnet18", stem="small2", width=16, channels=1, head_hidden=8)
    model, _ = train(
        tmp_path / "run", seven, train=given.train, selection=given.selection, epochs=60,
        keep="last", augment=Augment(),
    )  # fmt: skip
    answers = protocol.predict_logits(model, given.train, PREPROCESS).argmax(1)
    assert (answers == given.train.labels).mean() > 0.6  # by heart
    numbers = score_tests(model, given, PREPROCESS, views=1, bootstrap=1000)[0][0].numbers
    low, high = numbers["accuracy_interval"]
    assert low < 1 / 7 < high < 0.35
