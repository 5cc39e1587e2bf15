"""Scoring a model on other people's datasets."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fer_helpers.cross_dataset import (
    cross_dataset,
    cross_dataset_table,
    load_others,
    mark_seen,
    why_seen,
)
from fer_helpers.data import DataError, load_fer2013
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.records import stamp
from fer_helpers.runs import RunError
from fer_helpers.splits import SelectionSet, TrainSet


class Faces:
    """As much of a `FaceSet` as is looked at."""

    def __init__(self, pixels, dataset, content_hash="", split="train", class_names=(), labels=()):
        self.pixels, self.dataset, self.split = pixels, dataset, split
        self.content_hash = content_hash or dataset
        self.class_names, self.labels = class_names, np.asarray(labels)

    def __len__(self):
        return len(self.pixels)

    def images(self, positions):
        return self.pixels[positions]


def pictures(n, seed, channels=1):
    return np.random.default_rng(seed).integers(256, size=(n, 6, 6, channels), dtype=np.uint8)


def test_what_was_used_is_seen():
    new = Faces(pictures(5, 0), "RAF-DB")
    why, seen = why_seen(new, [Faces(pictures(9, 1), "FER2013")])
    assert why == "" and not seen.any()
    for whole, words in (("other", "RAF-DB"), "same files"), (("raf-db", "another"), "was used"):
        why, seen = why_seen(new, [Faces(pictures(9, 1), *whole)])
        assert words in why and seen.all()
    shared = np.concatenate([pictures(9, 1), new.pixels[:2]])
    for faces in (shared, np.repeat(shared, 3, axis=-1)):  # the second in color
        why, seen = why_seen(new, [Faces(faces, "FER2013")])
        assert why == "2 of 5 pictures are in FER2013 train too"
        assert seen.tolist() == [True, True, False, False, False]
    more = Faces(new.pixels[1:3], "AffectNet", split="selection")
    why, seen = why_seen(new, [Faces(shared, "FER2013"), more])
    assert why.endswith("train too; 2 of 5 pictures are in AffectNet selection too")
    assert seen.tolist() == [True, True, True, False, False]
    colors = pictures(9, 1, channels=3)
    grey = [np.asarray(Image.fromarray(face).convert("L"))[..., None] for face in colors[:3]]
    assert why_seen(Faces(np.stack(grey), "CK+"), [Faces(colors, "FER2013")])[1].all()


def test_blank_pictures_make_nothing_seen():
    blank = np.zeros((1, 6, 6, 1), dtype=np.uint8)
    new = Faces(np.concatenate([pictures(3, 0), blank]), "RAF-DB")
    used = Faces(np.concatenate([pictures(3, 1), blank]), "FER2013")
    assert why_seen(new, [used])[0] == ""


def test_what_phase_1_learned_or_chose_on_is_no_leak_free_test_of_phase_2(tmp_path, capsys):
    folder = write_demo_faces(tmp_path / "drawn", per_class=12, flaws=False) / "fer2013"
    fer = load_fer2013(folder / "train", folder / "test", cache_dir=tmp_path / "cache", size=48)
    test = fer.tests[0]
    assert test.leak_free[:3].all()
    learned = test.take(slice(0, 2), as_type=TrainSet, dataset="AffectNet")
    chosen_on = test.take(slice(2, 3), as_type=SelectionSet, dataset="AffectNet")
    marked = mark_seen(fer, replace(fer, train=learned, selection=chosen_on)).tests[0]
    assert not marked.leak_free[:3].any()
    assert np.array_equal(marked.leak_free[3:], test.leak_free[3:])
    assert f"3 of {len(test):,} faces also stand in AffectNet" in capsys.readouterr().out
    same = mark_seen(fer, replace(fer, train=learned.take(slice(0, 0)), selection=None)).tests[0]
    assert np.array_equal(same.leak_free, test.leak_free)


def test_a_foreign_set_is_scored_on_the_shared_classes():
    # The model knows three classes, the set has two of them and one more, in another order.
    new = Faces(
        pictures(5, 0),
        "CK+",
        class_names=("Contempt", "Sad", "Anger"),
        labels=[0, 1, 1, 2, 2],
    )
    logits = np.array([[9, 0, 0], [1, 9, 2], [3, 9, 2], [5, 9, 1], [1, 0, 2]], dtype=np.float32)
    taken_on = stamp("test", 5, 1, 0, "none", "x", "drawn", dataset="CK+")
    names = ["Anger", "Happy", "Sad"]
    row = cross_dataset(new, logits, names, [new], taken_on, bootstrap=50)
    assert row["class_names"] == ["Anger", "Sad"]
    assert (row["left_out"], row["stamp"]["n"]) == (1, 4)
    # Without Happy: Sad, Anger (wrong), Anger, Sad (wrong).
    assert row["numbers"]["accuracy"] == 0.5
    assert row["numbers"]["confusion"] == [[1, 1], [1, 1]]
    assert row["leak_free"] is None  # all of it was used
    # Two of its pictures were used: the one left out, and the first that is answered right.
    used = [Faces(new.pixels[:2], "FER2013")]
    partly = cross_dataset(new, logits, names, used, taken_on, bootstrap=50)
    assert (partly["leak_free"]["n"], partly["leak_free"]["accuracy"]) == (3, 1 / 3)
    assert partly["numbers"] == row["numbers"]
    table = cross_dataset_table([row, {**partly, "seen": ""}])
    assert table["status"].tolist() == ["seen: the same files as CK+ train", "no exact copy found"]
    assert table["leak_free_accuracy"].fillna(-1).tolist() == [-1, 1 / 3]
    with pytest.raises(RunError, match="shares 1"):
        cross_dataset(new, logits, ["Anger", "x", "y"], [], taken_on)


def test_other_sets_are_read_and_refused_before_training(tmp_path, capsys):
    classes = ("Anger", "Happy", "Sad")
    reading = {"cache_dir": tmp_path / "cache", "max_bad_share": 0.2}
    drawn = write_demo_faces(tmp_path / "drawn", per_class=10)
    assert load_others(" , ", classes, "drawn") == []
    folders = f" {drawn / 'fer2013'}, {drawn / 'affectnet'}"
    test, other = load_others(folders, classes, "drawn", **reading)
    assert (test.dataset, test.origin) == ("FER2013", "drawn")
    said = capsys.readouterr().out  # nothing is chosen on them
    assert f"FER2013: PrivateTest ({len(test)} images) is scored once.\n" in said
    assert f"AffectNet: val ({len(other)} images) is scored.\n" in said
    assert "cannot be read and are skipped" in said and "select" not in said.lower()
    train = drawn / "fer2013" / "train"  # a set without a test folder of its own
    (whole,) = load_others(str(train), classes, "drawn", **reading)
    assert whole.leak_free.all() and f"train: all images ({len(whole)}) are scored" in str(
        capsys.readouterr().out
    )
    assert len(whole) > 60
    (few,) = load_others(str(train), classes, "drawn", max_images=9, **reading)
    assert len(few) == 9
    with pytest.raises(RunError, match="drawn and real data never meet"):
        load_others(str(drawn / "fer2013"), classes, "real", **reading)
    with pytest.raises(RunError, match="shares 1"):
        load_others(str(drawn / "fer2013"), ["Anger", "x"], "drawn", **reading)
    with pytest.raises(DataError, match=r"^EXTRA_TEST_DIRS: .*nowhere"):
        load_others(str(tmp_path / "nowhere"), classes, "drawn", **reading)
