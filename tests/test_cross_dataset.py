"""Scoring a model on other people's datasets."""

import numpy as np
import pytest
from PIL import Image

from fer_helpers.cross_dataset import cross_dataset, cross_dataset_table, load_others, why_seen
from fer_helpers.data import DataError
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.records import stamp
from fer_helpers.runs import RunError


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
    assert why_seen(new, [Faces(pictures(9, 1), "FER2013")]) == ""
    assert "same files" in why_seen(new, [Faces(pictures(9, 1), "other", "RAF-DB")])
    assert "was used" in why_seen(new, [Faces(pictures(9, 1), "raf-db", "another")])
    shared = np.concatenate([pictures(9, 1), new.pixels[:2]])
    assert why_seen(new, [Faces(shared, "FER2013")]).startswith("2 of 5")
    in_color = Faces(np.repeat(shared, 3, axis=-1), "FER2013")
    assert why_seen(new, [in_color]).startswith("2 of 5")
    colors = pictures(9, 1, channels=3)
    grey = [np.asarray(Image.fromarray(face).convert("L"))[..., None] for face in colors[:3]]
    assert why_seen(Faces(np.stack(grey), "CK+"), [Faces(colors, "FER2013")]).startswith("3 of 3")


def test_blank_pictures_make_nothing_seen():
    blank = np.zeros((1, 6, 6, 1), dtype=np.uint8)
    new = Faces(np.concatenate([pictures(3, 0), blank]), "RAF-DB")
    used = Faces(np.concatenate([pictures(3, 1), blank]), "FER2013")
    assert why_seen(new, [used]) == ""


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
    row = cross_dataset(new, logits, ["Anger", "Happy", "Sad"], [new], taken_on, bootstrap=50)
    assert row["class_names"] == ["Anger", "Sad"]
    assert (row["left_out"], row["stamp"]["n"]) == (1, 4)
    # Without Happy: Sad, Anger (wrong), Anger, Sad (wrong).
    assert row["numbers"]["accuracy"] == 0.5
    assert row["numbers"]["confusion"] == [[1, 1], [1, 1]]
    table = cross_dataset_table([row, {**row, "seen": ""}])
    assert table["status"].str.startswith("seen").tolist() == [True, False]
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
    with pytest.raises(RunError, match="drawn and real data never meet"):
        load_others(str(drawn / "fer2013"), classes, "real", **reading)
    with pytest.raises(RunError, match="shares 1"):
        load_others(str(drawn / "fer2013"), ["Anger", "x"], "drawn", **reading)
    with pytest.raises(DataError, match=r"^EXTRA_TEST_DIRS: .*nowhere"):
        load_others(str(tmp_path / "nowhere"), classes, "drawn", **reading)
