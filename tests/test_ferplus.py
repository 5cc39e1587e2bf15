"""FER+ votes find their faces, by pixels or by name."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_helpers.data import DataError, FaceSet, load_fer2013
from fer_helpers.fer_csv import FER_CSV_ORDER
from fer_helpers.ferplus import VOTES, main, match_ferplus, read_ferplus_votes, vote_shares
from fer_helpers.layouts import FER_CLASSES, FER_FOLDERS
from tests.faces_on_disk import shared

FOLDER_OF = dict(zip(FER_CLASSES, FER_FOLDERS, strict=True))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The three publications of the same pictures: a CSV, FER+ votes, and JPEG copies."""
    root = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    twin = None
    rows, votes, names = ["emotion,pixels,Usage"], [], {}
    for row in range(84):
        usage = "Training" if row < 70 else "PublicTest"
        label = row % 7
        small = rng.integers(0, 256, (6, 6), dtype=np.uint8)
        image = Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)
        if row == 62:
            twin = image
        if row == 69:  # a twin of row 62: same class, same pixels, own votes
            image = twin
        rows.append(f"{label},{' '.join(map(str, np.asarray(image).ravel()))},{usage}")
        folder = "train" if usage == "Training" else "test"
        name = f"{usage}_{rng.integers(10**7, 10**8)}.jpg"
        path = root / folder / FOLDER_OF[FER_CSV_ORDER[label]] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=80)
        names[f"{folder}/{path.parent.name}/{name}"] = row
        votes.append([usage, "" if row == 5 else f"fer{row:07d}.png", row % 11, *range(9)])
    (root / "fer2013.csv").write_text("\n".join(rows) + "\n")
    head = ["Usage", "Image name", *VOTES]
    pd.DataFrame(votes, columns=head).to_csv(root / "fer2013new.csv", index=False)
    splits = load_fer2013(
        root / "train", root / "test", selection_size=0, cache_dir=root / "cache", progress=False
    )
    return root, splits, names


def test_files_find_their_rows_by_pixels(published):
    root, splits, names = published
    for faces in (splits.train, splits.tests[0]):
        joined = match_ferplus(
            root / "fer2013.csv", root / "fer2013new.csv", faces, cache_dir=root / "cache"
        )
        assert joined["file"].tolist() == faces.files.tolist()
        rows = np.array([names[file] for file in faces.files])
        plain = ~np.isin(rows, (62, 69, 5))
        expected = [f"fer{row:07d}.png" for row in rows[plain]]
        assert joined["ferplus_name"][plain].tolist() == expected
        assert joined["neutral"][plain].tolist() == (rows[plain] % 11).tolist()
        assert joined["error"].max() < 12 and joined["error"].notna().all()
    rows = {names[file]: i for i, file in enumerate(splits.train.files)}
    joined = match_ferplus(root, root / "fer2013new.csv", splits.train, cache_dir=root / "cache")
    twins = {joined["ferplus_name"][rows[row]] for row in (62, 69)}
    assert twins == {"fer0000062.png", "fer0000069.png"}  # one each, in whatever order
    assert joined["ferplus_name"][rows[5]] == ""


def test_a_test_face_gets_its_own_votes_not_those_of_its_twin_in_train(published, tmp_path):
    root, splits, names = published
    lines = (root / "fer2013.csv").read_text().splitlines()
    lines[1 + 3] = lines[1 + 73].replace("PublicTest", "Training")  # both of class 3
    (tmp_path / "fer2013.csv").write_text("\n".join(lines) + "\n")
    for faces in (splits.tests[0], splits.tests[0].take(slice(None, None, -1))):
        joined = match_ferplus(tmp_path, root / "fer2013new.csv", faces, cache_dir=tmp_path / "c")
        expected = [f"fer{names[file]:07d}.png" for file in faces.files]
        assert joined["ferplus_name"].tolist() == expected


def test_a_face_that_is_not_there_gets_no_votes(published):
    root, splits, _ = published
    noise = np.random.default_rng(9).integers(0, 256, (2, 48, 48, 1), dtype=np.uint8)
    strangers = FaceSet(
        noise, np.arange(2), np.array([0, 3]), splits.train.class_names,
        np.array(["train/angry/a.jpg", "train/happy/b.jpg"]), "train", "FER2013", "real", "",
    )  # fmt: skip
    joined = match_ferplus(root, root / "fer2013new.csv", strangers, cache_dir=root / "cache")
    assert joined["error"].isna().all() and (joined[list(VOTES)] == 0).all(axis=None)


def test_a_ready_table_goes_round(published, tmp_path):
    root, splits, _ = published
    joined = match_ferplus(root, root / "fer2013new.csv", splits.train, cache_dir=root / "cache")
    joined.to_csv(tmp_path / "votes.csv", index=False)
    votes = read_ferplus_votes(tmp_path / "votes.csv", splits.train)
    np.testing.assert_array_equal(votes, joined[list(VOTES)])


def test_tables_that_do_not_fit_are_refused(published, tmp_path):
    root, splits, _ = published
    votes = pd.read_csv(root / "fer2013new.csv")
    votes.iloc[:-1].to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(DataError, match=r"\(83 rows\) does not follow"):
        match_ferplus(root, tmp_path / "short.csv", splits.train, cache_dir=root / "cache")
    votes.drop(columns="NF").to_csv(tmp_path / "narrow.csv", index=False)
    with pytest.raises(DataError, match="lacks the columns NF"):
        match_ferplus(root, tmp_path / "narrow.csv", splits.train, cache_dir=root / "cache")
    with pytest.raises(DataError, match="cannot be read"):
        read_ferplus_votes(tmp_path / "nowhere.csv", splits.train)
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(DataError, match=r"book\.xlsx cannot be read"):
        read_ferplus_votes(tmp_path / "book.xlsx", splits.train)
    with pytest.raises(DataError, match=r"book\.xlsx cannot be read"):
        match_ferplus(root, tmp_path / "book.xlsx", splits.train, cache_dir=root / "cache")
    other = pd.DataFrame([["train/sad/x.jpg", *range(10)]], columns=["file", *VOTES])
    other.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(DataError, match="votes for none of the 70 faces"):
        read_ferplus_votes(tmp_path / "other.csv", splits.train)
    pd.concat([other, other]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(DataError, match=r"names train/Sad/x\.jpg twice"):
        read_ferplus_votes(tmp_path / "twice.csv", splits.train)


def test_votes_stay_with_their_split(published, tmp_path):
    _, splits, _ = published
    files = np.array([f"train/{name.split('/')[1]}/1.jpg" for name in splits.train.files[:1]])
    train = replace(splits.train.take([0]), files=files)
    test = replace(train, files=np.char.replace(files, "train", "test"))
    table = pd.DataFrame([[files[0], *range(10)]], columns=["file", *VOTES])
    table.to_csv(tmp_path / "votes.csv", index=False)
    with pytest.raises(DataError, match="votes for none"):
        read_ferplus_votes(tmp_path / "votes.csv", test)
    both = pd.concat([table, table.assign(file=test.files, neutral=9)])
    both.to_csv(tmp_path / "votes.csv", index=False)
    assert read_ferplus_votes(tmp_path / "votes.csv", train)[0, 0] == 0
    assert read_ferplus_votes(tmp_path / "votes.csv", test)[0, 0] == 9
    table.assign(file=files[0].removeprefix("train/")).to_csv(tmp_path / "votes.csv", index=False)
    assert read_ferplus_votes(tmp_path / "votes.csv", train)[0, 9] == 9


@pytest.mark.parametrize("vote", [0.8, -1, "many"])
def test_votes_that_are_no_counts_are_refused(published, tmp_path, vote):
    _, splits, _ = published
    rows = [[file, *[0] * 10] for file in splits.train.files]
    table = pd.DataFrame(rows, columns=["file", *VOTES]).astype(object)
    table.loc[3, "sadness"] = vote
    table.to_csv(tmp_path / "votes.csv", index=False)
    with pytest.raises(DataError, match=rf"gives \w+/\S+ {vote} votes for sadness"):
        read_ferplus_votes(tmp_path / "votes.csv", splits.train)
    table.loc[3, "sadness"] = None  # an empty cell is no vote
    table.to_csv(tmp_path / "votes.csv", index=False)
    assert not read_ferplus_votes(tmp_path / "votes.csv", splits.train).any()


def test_shares_are_of_the_emotions_alone():
    votes = np.zeros((3, 10), np.int64)
    votes[0, [0, 3, 8, 9]] = 6, 2, 1, 1  # six neutral, two sad, one unknown, one not a face
    votes[1, 9] = 10  # not a face
    shares = vote_shares(votes)
    assert shares.dtype == np.float32 and shares.shape == (3, 8)
    assert shares[0].tolist() == [0.75, 0, 0, 0.25, 0, 0, 0, 0]
    assert not shares[1:].any()


def test_the_table_of_the_development_data_is_read(tmp_path):
    table = shared("ferplus-kaggle-names.csv")
    files = pd.read_csv(table)["file"].to_numpy()[[0, 5000, 32000]].astype(str)
    faces = FaceSet(
        np.zeros((3, 2, 2, 1), np.uint8), np.arange(3), np.zeros(3, np.int64), ("Anger", "Fear"),
        files, "train", "FER2013", "real", "",
    )  # fmt: skip
    votes = read_ferplus_votes(table, faces)
    assert votes.shape == (3, 10) and votes[0].tolist() == [8, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    everybody = pd.read_csv(table)[list(VOTES)].fillna(0).to_numpy(np.int64)
    shares = vote_shares(everybody)
    voted = shares.any(1)
    assert 0.9 < voted.mean() < 1  # some are no face, and nobody saw an emotion in them
    np.testing.assert_allclose(shares[voted].sum(1), 1, rtol=1e-6)
    assert (shares.argmax(1) == everybody[:, :8].argmax(1))[voted].all()


def test_the_command_writes_the_table_that_is_read(published, tmp_path, monkeypatch, capsys):
    root, splits, names = published
    monkeypatch.setattr("fer_helpers.cache.default_cache_dir", lambda: tmp_path / "cache")
    out = tmp_path / "new" / "ferplus.csv"
    files = [str(root / "fer2013.csv"), str(root / "fer2013new.csv")]
    assert main([*files, "--data", str(root), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("Votes for 84 of 84 files in ")
    table = pd.read_csv(out, keep_default_na=False)
    assert sorted(table["file"]) == sorted(names)
    for faces in (splits.train, splits.tests[0]):
        alone = match_ferplus(*files, faces, cache_dir=root / "cache")[list(VOTES)].to_numpy()
        np.testing.assert_array_equal(read_ferplus_votes(out, faces), alone)


def test_the_command_says_what_is_missing(tmp_path, capsys):
    wrong = ["fer2013.csv", "new.csv", "--data", str(tmp_path), "--out", str(tmp_path / "out.csv")]
    assert main(wrong) == 1
    said = capsys.readouterr().err
    assert said == f"--data {tmp_path} does not hold train and test: give FER2013's folder.\n"
    assert not (tmp_path / "out.csv").exists()
