import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.ferplus import VOTES
from fer_helpers.phases import TrainingError
from fer_helpers.splits import Splits, _shuffle_keys
from tests.tiny import faces, scored_faces

ROOT = Path(__file__).parents[1]
SLICE = ROOT / "docs" / "results" / "fer2013-selection-slice.txt"
REAL = ROOT / "data" / "fer2013"


@pytest.fixture
def ablation():
    place = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks" / "ablation.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def result(arm, seed, right):
    about = {"minutes": 2.0, "where": "cpu, fp32, 2 threads", "commit": "0123456789abcdef"}
    return {"arm": arm, "seed": seed, "right": right, **about}


def test_the_committed_slice_has_3000_names():
    names = SLICE.read_text(encoding="utf-8").split()
    assert len(names) == len(set(names)) == 3000
    assert all(name.startswith("train/") for name in names)


def test_the_committed_slice_is_what_these_keys_would_cut():
    """Of 28,709 names the first 3,000; a group of twins has the key of its first."""
    names = np.array(SLICE.read_text(encoding="utf-8").split())
    keys = _shuffle_keys(names, "selection") / 2.0**64
    assert np.mean(keys < 0.13) > 0.85


@pytest.mark.skipif(not REAL.exists(), reason="needs FER2013 in data/fer2013 (make data-dev)")
def test_the_slice_is_the_committed_one_and_has_no_twin_in_train():
    splits = load_fer2013(REAL / "train", REAL / "test", selection_size=3000, size=48)
    assert sorted(splits.selection.files) == SLICE.read_text(encoding="utf-8").split()
    assert not np.isin(splits.selection.pixel_hashes, splits.train.pixel_hashes).any()


def test_differences_are_paired_by_seed_and_image(ablation):
    base = [result("base", 0, [1, 0, 0, 0]), result("base", 1, [1, 1, 0, 0])]
    arm = [result("SE", 0, [1, 1, 1, 0]), result("SE", 1, [1, 1, 1, 0]), result("SE", 7, [0] * 4)]
    found = ablation.paired(base, arm)
    assert found["seeds"] == [0, 1]
    assert found["difference"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    # By hand: seeds gain 1/2 and 1/4, images 0, 1/2, 1 and 0; six residuals are 1/8, two 3/8.
    seeds, images = np.var([0.5, 0.25], ddof=1) / 2, np.var([0, 0.5, 1, 0], ddof=1) / 4
    both = (6 / 64 + 2 * 9 / 64) / 3 / 8
    total = seeds + images - both
    freedom = total**2 / (seeds**2 + images**2 / 3)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(total)
    assert found["interval"] == pytest.approx([0.375 - reach, 0.375 + reach], rel=1e-4)
    assert ablation.paired(base[:1], arm)["interval"] is None
    assert found["p_values"] == [pytest.approx(0.5), pytest.approx(1.0)]


def test_equal_answers_have_an_interval_without_width(ablation):
    runs = [result("base", seed, [1, 0, 1]) for seed in (0, 1)]
    assert ablation.paired(runs, runs)["interval"] == [0, 0]


@pytest.mark.parametrize("spread", [0, 0.005])
def test_the_interval_covers_the_truth_about_95_times_of_100(ablation, spread):
    """Three seeds that spread by nothing, or by half a point, on 1,000 images."""
    generator = np.random.default_rng(0)
    hit, widths = 0, []
    for _ in range(400):
        chance = 0.05 + 0.2 * generator.random(1000)  # of an answer that changes, image by image
        changes = generator.random((3, 1000)) < chance
        gains = changes * generator.choice([-1, 1], (3, 1000))
        gains = gains + spread * generator.normal(size=(3, 1))
        widths.append(ablation._reach(gains))
        hit += abs(gains.mean()) <= widths[-1]
    assert 0.93 <= hit / 400 <= 0.995
    # Student's t over two degrees of freedom alone would be 4.3 standard errors.
    if not spread:
        assert np.median(widths) < 3 * np.sqrt(np.mean(chance) / 3000)


def test_the_table_names_what_is_unfinished(ablation):
    runs = [result("base", 0, [1, 0, 1, 0]), result("base", 1, [1, 1, 1, 0]),
            result("SE", 0, [1, 1, 1, 0])]  # fmt: skip
    text = ablation.table(runs, ["base", "SE", "CBAM"], [0, 1])
    assert "| base | 0, 1 | 62.50 (17.68) | 2.0 |  |  |" in text
    assert "| SE | 0 | 75.00 | 2.0 | +25.00 | " in text
    assert text.endswith("Unfinished: SE (seed 1), CBAM (seed 0), CBAM (seed 1).")
    assert "| +25.00 | " in ablation.table(runs, ["SE"], [0])  # the base need not be asked for


def test_a_small_p_is_not_printed_as_0(ablation):
    runs = [result("base", 0, [0] * 20), result("SE", 0, [1] * 20)]
    assert "| < 0.001 |" in ablation.table(runs, ["base", "SE"], [0])


def test_a_recipe_takes_all_images_and_no_votes_without_a_weight(ablation, tmp_path):
    with pytest.raises(SystemExit, match="set it to 0 here"):
        ablation.read_fer(tmp_path, ablation.Config(max_images=9))
    with pytest.raises(SystemExit, match="FERPLUS_VOTES without FERPLUS_WEIGHT"):
        ablation.votes_of(ablation.Config(ferplus_votes="x.csv"), faces())


def test_blanks_are_dropped_where_the_recipe_says_so(ablation, tmp_path, monkeypatch):
    data = write_demo_faces(tmp_path / "drawn", per_class=4)
    blank = data / "fer2013" / "train" / "happy" / "Training_blank.png"
    Image.new("L", (48, 48)).save(blank)
    monkeypatch.setattr(ablation, "SLICE", tmp_path / "slice.txt")
    (tmp_path / "slice.txt").write_text("")
    kept, dropped = (
        ablation.read_fer(data, ablation.Config(drop_blanks=drop, max_bad_share=0.2), 0).train.files
        for drop in (False, True)
    )
    assert set(kept) - set(dropped) == {"train/happy/Training_blank.png"}


def test_a_training_that_is_refused_ends_in_a_sentence(ablation, tmp_path, monkeypatch):
    def train(*_):
        raise TrainingError("It cannot.")

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(sys, "argv", ["ablation", "--arms", "base", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"It cannot\. \(Here a new run is another folder"):
        ablation.main()


def test_private_test_is_never_scored(ablation, tmp_path):
    private = scored_faces(split="PrivateTest")
    public = scored_faces(split="PublicTest", stamp="contains the selection split")
    kept = ablation.public_only(Splits(faces(), None, (private, public), ""), tmp_path).tests
    assert [(test.split, test.stamp) for test in kept] == [("PublicTest", "")]
    with pytest.raises(SystemExit, match=r"No PublicTest image in .*test: add"):
        ablation.public_only(Splits(faces(), None, (private,), ""), tmp_path)


def test_what_an_arm_lacks_is_said_first(ablation, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", "--votes", str(tmp_path / "votes.csv")])
    with pytest.raises(SystemExit):
        ablation.main()
    assert "votes.csv, which is not there" in capsys.readouterr().err


@pytest.mark.parametrize("arm", ["base", "SE"])  # the base is in every table
def test_runs_of_another_recipe_are_not_compared(ablation, tmp_path, monkeypatch, capsys, arm):
    recipe = ablation.settings("base", 0, tmp_path).fingerprint()
    run = {**result("base", 0, [1, 0]), "recipe": {**recipe, "MIXUP": 0.9}}
    (tmp_path / "base-0").mkdir()
    (tmp_path / "base-0" / "result.json").write_text(json.dumps(run))
    arguments = ["ablation", "--out", str(tmp_path), "--arms", arm, "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        ablation.main()
    assert "another recipe or precision: base (seed 0)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*arguments, "--table"])
    ablation.main()  # a table of old runs can be had
    assert "| base | 0 |" in capsys.readouterr().out


def test_runs_of_arms_that_are_not_asked_for_need_no_votes(ablation, tmp_path, monkeypatch):
    (tmp_path / "votes").mkdir()
    run = {**result("FER+ votes", 0, [1, 0]), "recipe": {"FERPLUS_VOTES": "a hash"}}
    (tmp_path / "votes" / "result.json").write_text(json.dumps(run))
    monkeypatch.setattr(ablation, "train", lambda arm, *_: result(arm, 1, [1, 0]))
    monkeypatch.setattr(sys, "argv", [
        "ablation", "--out", str(tmp_path), "--arms", "base", "--seeds", "1",
        "--votes", str(tmp_path / "votes.csv"),
    ])  # fmt: skip
    ablation.main()
    assert (tmp_path / "base-1" / "result.json").exists()


@pytest.mark.slow
def test_the_queue_trains_scores_and_does_not_repeat(ablation, tmp_path, monkeypatch, capsys):
    small = {"width": 16, "fer_epochs": 1, "affectnet_epochs": 1, "max_bad_share": 0.1,
             "image_size": 32, "start_size": 16}  # fmt: skip
    monkeypatch.setattr(ablation, "BUDGET", small)
    data = write_demo_faces(tmp_path / "drawn", per_class=12)
    splits = load_fer2013(data / "fer2013" / "train", data / "fer2013" / "test", max_bad_share=0.1,
                          cache_dir=tmp_path)  # fmt: skip
    monkeypatch.setattr(ablation, "SLICE", tmp_path / "slice.txt")
    ablation.SLICE.write_text("\n".join(splits.train.files[::3]))
    listed = len(splits.train.files[::3])
    votes = pd.DataFrame({"file": splits.train.files, **dict.fromkeys(VOTES, 1)})
    votes.to_csv(tmp_path / "votes.csv", index=False)
    monkeypatch.setattr(sys, "argv", [
        "ablation", "--data", str(data), "--votes", str(tmp_path / "votes.csv"),
        "--out", str(tmp_path / "out"), "--seeds", "3",
    ])  # fmt: skip
    ablation.main()
    assert "Unfinished: nothing." in capsys.readouterr().out
    files = sorted((tmp_path / "out").glob("*/result.json"))
    assert len(files) == len(ablation.ARMS)
    assert {len(json.loads(file.read_text())["right"]) for file in files} == {listed}
    before = {file: file.stat().st_mtime_ns for file in files}
    ablation.main()
    assert before == {file: file.stat().st_mtime_ns for file in files}
