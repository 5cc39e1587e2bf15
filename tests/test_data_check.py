"""The data check finds every flaw that was put there, and only those."""

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats.contingency import association

from fer_helpers import data_check
from fer_helpers.any_layout import load_faces
from fer_helpers.data import DataError, FaceSet, load_affectnet, load_fer2013
from fer_helpers.data_check import check_data, clean_train, write_duplicates
from fer_helpers.flaws import (
    class_clues,
    corrected_cramers_v,
    face_table,
    file_family,
    near_twins,
)
from tests.faces_on_disk import picture, save, shared, write_affectnet, write_fer


def load(root, **keywords):
    keywords = {"cache_dir": root / "cache", "selection_size": 0, "progress": False} | keywords
    return load_fer2013(root / "train", root / "test", **keywords)


def finding(report, check):
    row = report.findings[report.findings["check"].str.startswith(check)]
    assert len(row) == 1, f"{check!r} stands {len(row)} times in the findings"
    return row.iloc[0]


@pytest.fixture
def flawed(tmp_path):
    """Twins inside train and across, a conflict, blanks, a near-twin, a reused name."""
    write_fer(tmp_path, public=3, private=3)
    train, test = tmp_path / "train", tmp_path / "test"
    shutil.copy(train / "angry/Training_1.png", train / "angry/Training_9001.png")
    shutil.copy(train / "angry/Training_2.png", train / "sad/Training_9002.png")
    shutil.copy(train / "happy/Training_303.png", test / "happy/PublicTest_9003.png")
    shutil.copy(train / "happy/Training_304.png", test / "fear/PrivateTest_9004.png")
    shutil.copy(test / "fear/PublicTest_10200.png", test / "fear/PrivateTest_9005.png")
    save(train / "sad/Training_9006.png", np.full((12, 12), 70, np.uint8))
    save(train / "fear/Training_9007.png", np.full((12, 12), 71, np.uint8))
    with Image.open(train / "sad/Training_505.png") as image:
        brighter = np.asarray(image) // 2 + 60
    save(test / "sad/PublicTest_9008.png", brighter.astype(np.uint8))
    return tmp_path


def test_every_flaw_is_found(flawed):
    report = check_data(load(flawed))
    assert finding(report, "exact twins")["found"] == "5 groups, 10 images, 5 surplus"
    assert finding(report, "twin groups across")["found"] == "3"
    assert finding(report, "twin groups, labels")["found"] == "2"
    assert finding(report, "PublicTest images with")["found"].startswith("1 (")
    assert finding(report, "PrivateTest images with")["found"].startswith("1 (")
    assert finding(report, "blank pictures")["found"] == "2 (train 2)"
    assert report.twins["conflict"].sum() == 4
    assert set(report.blanks["file"]) == {
        "train/sad/Training_9006.png",
        "train/fear/Training_9007.png",
    }
    near = report.near
    assert len(near) == 1 and near["correlation"].iloc[0] > 0.999
    assert near["file_a"].iloc[0] == "train/sad/Training_505.png"
    assert near["file_b"].iloc[0] == "test/sad/PublicTest_9008.png"
    images = [f"images in {split}" for split in ("train", "PublicTest", "PrivateTest")]
    assert report.findings["check"].head(3).tolist() == images
    advice = report.findings["advice"].iloc[0]
    assert "Anger 11 not 3,995" in advice and "Fear 11 not 4,097" in advice


def test_a_clean_dataset_has_nothing_to_say(tmp_path):
    report = check_data(load(write_fer(tmp_path)))
    for check in ("exact twins", "blank", "near-twins", "twin groups", "file names in"):
        rows = report.findings[report.findings["check"].str.startswith(check)]
        assert (rows["found"] == "0").all() and (rows["advice"] == "").all()
    assert report.near.empty and report.twins.empty and report.blanks.empty


def test_fer2013_is_compared_with_the_official_counts(tmp_path):
    row = finding(check_data(load(write_fer(tmp_path))), "images in PrivateTest")
    assert row["expected"] == "3,589" and "Anger 2 not 491" in row["advice"]
    row = finding(check_data(load(tmp_path, max_images=7)), "images in PrivateTest")
    assert row["expected"] == "" and row["advice"] == ""  # MAX_IMAGES explains the difference
    (tmp_path / "drawn_faces.json").write_text("{}")
    write_fer(tmp_path / "fer2013")
    row = finding(check_data(load(tmp_path / "fer2013")), "images in PrivateTest")
    assert row["expected"] == "" and row["advice"] == ""


def test_another_dataset_called_fer2013_is_not_compared_with_it(tmp_path):
    write_affectnet(tmp_path / "FER2013", splits=("train", "test"))
    splits = load_faces(tmp_path / "FER2013", cache_dir=tmp_path / "cache", progress=False)
    assert splits.train.dataset == "FER2013"
    assert finding(check_data(splits), "images in train")["expected"] == ""


def test_a_slice_of_train_counts_as_train(flawed):
    for path in (flawed / "test").rglob("PrivateTest_*"):
        path.unlink()
    whole, sliced = load(flawed), load(flawed, selection_size=14)
    assert len(sliced.selection) == 14
    a, b = check_data(whole), check_data(sliced)
    assert a.findings.equals(b.findings)


def test_the_text_is_the_same_every_time(flawed):
    splits = load(flawed)
    first, second = str(check_data(splits)), str(check_data(splits))
    assert first == second and "exact twins" in first and "->" in first


def test_reused_names_are_counted_with_their_pictures(tmp_path):
    write_affectnet(tmp_path)
    for name in ("Happy/image400.png", "Fear/image300.png"):
        shutil.copy(tmp_path / "train" / name, tmp_path / "val" / name)
    save(tmp_path / "val/Sad/image600.png", picture(999, (10, 10), grey=False))
    splits = load_affectnet(tmp_path, cache_dir=tmp_path / "cache", progress=False)
    row = finding(check_data(splits), "file names in two splits")
    assert row["found"] == "3 names, 2 of them the same picture"


def test_an_origin_that_gives_the_class_away(tmp_path):
    for k, name in enumerate(("happy", "sad")):
        for i in range(60):
            family = "ffhq" if (i < 50) == (k == 0) else "image"
            save(tmp_path / "data" / name / f"{family}_{k}{i:02}.png", picture(k * 100 + i))
    splits = load_faces(tmp_path / "data", cache_dir=tmp_path / "cache", selection_size=0)
    clues = class_clues(face_table(splits))
    assert clues["clue"].tolist() == ["file name family"]
    # By hand: Cramér's V of a 2x2 table is |ad - bc| / sqrt of the product of the margins.
    table = face_table(splits)
    inside = table[table["split"] == "train"]
    family = inside["file"].str.contains("ffhq").to_numpy()
    happy = (inside["emotion"] == "Happy").to_numpy()
    a, b = (family & happy).sum(), (family & ~happy).sum()
    c, d = (~family & happy).sum(), (~family & ~happy).sum()
    phi2 = (a * d - b * c) ** 2 / ((a + b) * (c + d) * (a + c) * (b + d))
    less = 1 / (a + b + c + d - 1)  # Bergsma's correction, for two rows and two columns
    expected = np.sqrt((phi2 - less) / (1 - less))
    assert clues["cramers_v"].iloc[0] == pytest.approx(expected, abs=1e-6)
    advice = finding(check_data(splits), "file name family")["advice"]
    assert "a net may learn the source" in advice and "Happy" in advice


def test_file_names_that_are_the_class_are_a_clue_though_one_class_is_small(tmp_path):
    k = 0
    for name, count in (("happy", 60), ("sad", 40), ("fear", 12)):
        for i in range(count):
            k += 1
            save(tmp_path / "data" / name / f"{name}_{i}.png", picture(k))
    splits = load_faces(tmp_path / "data", cache_dir=tmp_path / "cache", selection_size=0)
    (clue,) = class_clues(face_table(splits)).itertuples()
    assert clue.cramers_v == pytest.approx(1.0)  # of the classes with enough files


def test_names_that_say_nothing_are_no_clue():
    """Sixty files of three families and five classes at random: uncorrected, V is about 0.25."""
    generator = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(200):
        counts = np.zeros((3, 5), int)
        np.add.at(counts, (generator.integers(3, size=60), generator.integers(5, size=60)), 1)
        found.append(corrected_cramers_v(counts))
        plain.append(association(counts, method="cramer"))
    assert np.mean(plain) > 0.2
    assert np.mean(found) < 0.1
    assert corrected_cramers_v(np.diag([20, 20, 20])) == pytest.approx(1)


def test_families_of_file_names():
    families = {
        "a/ffhq_1045.jpg": "ffhq",
        "image0000006.jpg": "image",
        "x/Training_3.jpg": "training",
        "0001.png": "(number)",
        "S010_002_00000014.png": "s",
    }
    assert {name: file_family(name) for name in families} == families


# ---------------------------------------------------------------- near-twins


def face_set(images, split="train", names=None):
    count = len(images)
    files = np.array(names or [f"{split}/a/{i}.png" for i in range(count)])
    return FaceSet(
        images, np.arange(count), np.zeros(count, np.int64), ("a", "b"), files, split,
        "made up", "drawn", "",
    )  # fmt: skip


def smooth(count, seed, side=24):
    """Pictures that look alike from afar, as faces do: blurred noise on one common shape."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    common = np.random.default_rng(0).normal(size=(side, side)).cumsum(0).cumsum(1)
    blurred = noise.cumsum(1).cumsum(2) + common
    low, high = blurred.min(axis=(1, 2), keepdims=True), blurred.max(axis=(1, 2), keepdims=True)
    return ((blurred - low) / (high - low) * 255).astype(np.uint8)[..., None]


def test_near_twins_equal_the_slow_way():
    sets = [face_set(smooth(150, 1)), face_set(smooth(90, 2), "test")]
    images = np.concatenate([faces.images() for faces in sets]).astype(np.float64)
    slow = np.corrcoef(images.reshape(240, -1))
    for threshold in (0.9, 0.95):
        expected = np.argwhere(np.triu(slow >= threshold, 1))
        pairs, values = near_twins(sets, threshold, block=64)
        order = np.lexsort(pairs.T[::-1])
        assert len(expected) and np.array_equal(pairs[order], expected)
        np.testing.assert_allclose(values[order], slow[tuple(expected.T)], atol=1e-4)


def test_near_twins_of_color_and_odd_sizes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 30, 25, 3), dtype=np.uint8)
    images[7] = images[2] // 2 + 20
    pairs, _ = near_twins([face_set(images)], block=4)
    assert pairs.tolist() == [[2, 7]]


def test_blank_pictures_are_nobodys_near_twin():
    images = np.zeros((6, 12, 12, 1), np.uint8)
    images[:] = np.arange(6)[:, None, None, None]
    assert len(near_twins([face_set(images)])[0]) == 0


def test_blank_is_a_spread_of_at_most_eight_in_every_channel():
    images = np.full((4, 12, 12, 3), 100, np.uint8)
    images[0, 3, 4] = 108
    images[1, 3, 4] = 109
    images[2, 3, 4, 1] = 200
    assert data_check.is_blank(face_set(images)).tolist() == [True, False, False, True]


def test_large_pictures_are_looked_at_a_few_at_a_time(monkeypatch):
    faces = face_set(np.zeros((400, 96, 96, 3), np.uint8))
    held, images = [], FaceSet.images

    def watch(self, positions=None):
        held.append(images(self, positions))
        return held[-1]

    monkeypatch.setattr(FaceSet, "images", watch)
    for look, pictures in ((data_check.is_blank, 4096), (lambda f: near_twins([f], block=64), 64)):
        held.clear()
        look(faces)
        assert sum(map(len, held)) == 400
        assert max(part.nbytes for part in held) <= pictures * 48 * 48


# ---------------------------------------------------------------- acting


def test_dropping_says_how_many_and_touches_train_only(flawed):
    splits = load(flawed)
    cleaned = clean_train(splits, drop_test_twins=True, drop_conflicts=True, drop_blanks=True)
    gone = set(splits.train.files) - set(cleaned.train.files)
    assert gone == {
        "train/happy/Training_303.png",
        "train/happy/Training_304.png",
        "train/angry/Training_2.png",
        "train/sad/Training_9002.png",
        "train/sad/Training_9006.png",
        "train/fear/Training_9007.png",
    }
    assert type(cleaned.train) is type(splits.train)
    assert cleaned.selection is splits.selection
    for before, after in zip(splits.tests, cleaned.tests, strict=True):
        assert after.files.tolist() == before.files.tolist() and after.stamp == before.stamp
    notes = cleaned.notes[len(splits.notes) :]
    assert [note.split(" that ")[0] for note in notes] == ["train: 2 images dropped"] * 3
    assert "DROP_TEST_TWINS" in notes[0] and "DROP_BLANKS" in notes[2]
    assert finding(check_data(cleaned), "PublicTest images with")["found"] == "0"


def test_dropping_nothing_changes_nothing(flawed):
    splits = load(flawed)
    cleaned = clean_train(splits)
    assert len(cleaned.train) == len(splits.train) and cleaned.notes == splits.notes
    assert cleaned.tests == splits.tests


def test_a_twin_that_left_train_leaks_no_more(flawed):
    splits = load(flawed)
    private, public, pooled = splits.tests
    assert [(~test.leak_free).sum() for test in splits.tests] == [1, 1, 2]
    # PublicTest, chosen on and scored, is no part of train: its twin in PrivateTest is no leak.
    assert private.leak_free[private.files == "test/fear/PrivateTest_9005.png"].all()
    cleaned = clean_train(splits, drop_test_twins=True)
    assert all(test.leak_free.all() for test in cleaned.tests)
    assert not pooled.leak_free.all()  # of what went in
    cleaned = clean_train(splits, drop_conflicts=True)  # takes other faces out of train
    assert all(a is b for a, b in zip(cleaned.tests, splits.tests, strict=True))
    assert not public.leak_free.all()


def test_a_twin_in_the_selection_slice_still_leaks(tmp_path):
    """One half of the test folder: choices are made on a slice of train, which stays whole."""
    write_fer(tmp_path, train=10, public=3, private=0)
    free = load(tmp_path, selection_size=14)
    for source, copy in ((free.selection.files[0], "9001"), (free.train.files[0], "9002")):
        shutil.copy(tmp_path / source, tmp_path / f"test/sad/PublicTest_{copy}.png")
    splits = load(tmp_path, selection_size=14)
    assert splits.selection.files.tolist() == free.selection.files.tolist()
    cleaned = clean_train(splits, drop_test_twins=True)
    assert len(cleaned.train) == len(splits.train) - 1
    leaks = [test.files[~test.leak_free].tolist() for s in (splits, cleaned) for test in s.tests]
    both = ["test/sad/PublicTest_9001.png", "test/sad/PublicTest_9002.png"]
    assert leaks == [both, both[:1]]


def test_advice_on_conflicts_counts_what_would_be_dropped(flawed):
    """Two groups have two labels; only one of them has both in train."""
    row = finding(check_data(load(flawed), near=None), "twin groups, labels")
    assert (row["found"], row["advice"]) == ("2", "DROP_CONFLICTS acts on 1, inside train")
    (flawed / "train/sad/Training_9002.png").unlink()
    row = finding(check_data(load(flawed), near=None), "twin groups, labels")
    assert (row["found"], row["advice"]) == ("1", "DROP_CONFLICTS acts on 0, inside train")


def test_a_class_never_vanishes(tmp_path):
    write_fer(tmp_path, train=2, public=2)
    for i in range(2):
        source = tmp_path / f"train/sad/Training_{500 + i}.png"
        shutil.copy(source, tmp_path / f"test/sad/PublicTest_90{i}.png")
    with pytest.raises(DataError, match="no training image of Sad"):
        clean_train(load(tmp_path), drop_test_twins=True)


# ---------------------------------------------------------------- for others


def test_the_table_for_others(flawed, tmp_path):
    report = check_data(load(flawed), near=None)
    path = write_duplicates(report, tmp_path / "out" / "duplicates.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    kinds = [row["kind"] for row in rows]
    assert len(rows) == 12 and kinds.count("twin") == 6 and kinds.count("conflict") == 4
    assert {row["file"] for row in rows if row["kind"] == "blank"} == set(report.blanks["file"])
    for row in rows:
        with Image.open(flawed / row["file"]) as image:
            by_hand = np.array([12, 12], "<i4").tobytes() + np.asarray(image).tobytes()
        assert row["pixel_hash"] == hashlib.blake2b(by_hand, digest_size=16).hexdigest()
    assert b"\r" not in path.read_bytes()


def test_worst_offenders_fit_a_gallery(flawed):
    splits = load(flawed)
    images, labels, captions = data_check.worst_offenders(splits, check_data(splits))
    assert labels == ["two labels", "two splits", "nearly the same", "blank"]
    assert [len(row) for row in images] == [4, 4, 2, 2]
    assert [len(row) for row in captions] == [4, 4, 2, 2]
    assert all(face.dtype == np.uint8 and face.ndim == 3 for row in images for face in row)


def test_splits_of_different_sizes_are_checked_too(tmp_path):
    write_fer(tmp_path)
    shutil.rmtree(tmp_path / "test")
    write_fer(tmp_path / "other", size=(9, 9))
    (tmp_path / "other" / "test").rename(tmp_path / "test")
    save(tmp_path / "test/sad/PublicTest_9001.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "train/sad/Training_9002.png", np.zeros((12, 12), np.uint8))
    splits = load(tmp_path)
    report = check_data(splits)
    assert finding(report, "near-twins")["found"] == "not searched"
    images, labels, _ = data_check.worst_offenders(splits, report)
    assert labels == ["blank"] and {face.shape for face in images[0]} == {(9, 9, 1), (12, 12, 1)}


# ---------------------------------------------------------------- the real data


@pytest.mark.slow
def test_the_real_fer2013_has_the_measured_flaws(tmp_path):
    shutil.unpack_archive(shared("fer2013-dev.zip"), tmp_path)
    report = check_data(load(tmp_path), near=0.99)
    assert finding(report, "exact twins")["found"] == "1,271 groups, 2,793 images, 1,522 surplus"
    assert finding(report, "twin groups across")["found"] == "270"
    assert finding(report, "twin groups, labels")["found"] == "47"
    assert finding(report, "PublicTest images with")["found"] == "280 (7.80%)"
    for split in ("train", "PublicTest"):
        row = finding(report, f"images in {split}")
        assert row["found"] == row["expected"] and not row["advice"]
    # Exactly constant are 8 of these files, and JPEG left a spread of 4 in one more.
    assert len(report.blanks) == 9
    published = Path(__file__).parents[1] / "docs/results/fer2013-duplicates.csv"
    written = write_duplicates(report, tmp_path / "duplicates.csv")
    assert written.read_text(encoding="utf-8") == published.read_text(encoding="utf-8")
