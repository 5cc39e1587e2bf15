"""The run folder: which one it is, what is written into it, and that nothing is ever lost."""

import errno
import itertools
import json
import os
import stat
from types import SimpleNamespace

import pytest
import yaml

from fer_helpers import files, mounts, runs
from fer_helpers.files import FolderInUseError, sole_writer
from fer_helpers.runs import RunError, open_run
from tests.tiny import full_disk

PARAMETERS = {"seed": 1, "lr": 1e-5, "output_dir": "runs"}
FINGERPRINT = {"seed": 1, "lr": 1e-5, "data": "abc"}


def opened(folder, name="a", fingerprint=FINGERPRINT, resume="auto", origin="drawn"):
    return open_run(folder, name, PARAMETERS, fingerprint, resume, origin=origin)


@pytest.fixture
def run(tmp_path):
    return opened(tmp_path / "runs")


def read_only(monkeypatch, folder):
    """Make a folder unwritable for whoever runs the test, root included."""
    probe = runs.probe

    def refuse(path):
        if path == folder:
            raise OSError(errno.EROFS, "Read-only file system")
        probe(path)

    monkeypatch.setattr(runs, "probe", refuse)


def inside(run, name):
    """Where a file of a run stands, its folder made."""
    path = run.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def clock(monkeypatch):
    """No two runs begin at once, as they may by the coarse clock of Windows."""
    ticks = itertools.count()
    monkeypatch.setattr(runs, "_now", lambda: f"2026-01-01T00:00:{next(ticks):02}")


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# Which folder


def test_a_new_run_writes_complete_parameters(tmp_path):
    run = opened(tmp_path / "deep" / "runs")
    assert run.folder == tmp_path / "deep" / "runs" / "a"
    assert (run.name, run.resumed) == ("a", False)
    text = (run.folder / "params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {"SEED": 1, "LR": 1e-5, "OUTPUT_DIR": "runs"}
    assert listing(run.folder) == ["params.yaml", "run.json"]


def test_without_a_name_the_clock_gives_one_and_two_never_meet(tmp_path):
    names = [opened(tmp_path, "", resume="never").name for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("fer-20") for name in names)


def test_auto_continues_the_named_folder(tmp_path):
    first = opened(tmp_path)
    inside(first, "history.csv").write_text("kept")
    again = opened(tmp_path)
    assert again.folder == first.folder
    assert again.resumed
    assert inside(again, "history.csv").read_text() == "kept"


def test_auto_refuses_another_fingerprint_and_says_what_differs(tmp_path):
    first = opened(tmp_path)
    inside(first, "fer2013/last.pt").write_text("trained")
    before = {path.name: path.read_bytes() for path in first.folder.glob("*.*")}
    with pytest.raises(RunError) as error:
        opened(tmp_path, fingerprint={"seed": 2, "lr": 1e-5, "backbone": "resnet18"})
    said = str(error.value)
    assert "seed was 1 and is 2" in said
    assert 'backbone was not there and is "resnet18"' in said
    assert 'data was "abc" and is not there' in said
    assert "lr was" not in said
    assert "RUN_NAME" in said
    assert "never" in said
    assert before == {path.name: path.read_bytes() for path in first.folder.glob("*.*")}


def test_a_run_that_broke_off_before_training_may_take_other_parameters(tmp_path):
    opened(tmp_path)
    run = opened(tmp_path, fingerprint={**FINGERPRINT, "lr": 1.0})
    assert not run.resumed and "never trained" in run.sentence and listing(tmp_path) == ["a"]
    run.expect({**FINGERPRINT, "lr": 1.0})


def test_a_first_write_that_was_broken_off_is_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".run.json.1234abcd.partial").write_text("{")
    assert not opened(tmp_path).resumed


def test_a_finished_run_that_is_opened_again_is_not_finished(tmp_path):
    run = opened(tmp_path)
    run.finish()
    assert json.loads((run.folder / "run.json").read_text())["finished"]
    before = {path.name: path.read_bytes() for path in run.folder.glob("*.*")}
    again = opened(tmp_path)
    assert before == {path.name: path.read_bytes() for path in run.folder.glob("*.*")}
    again.begin({"seed": 1}, {"fer2013": {"training data": "abc"}})
    assert not json.loads((run.folder / "run.json").read_text())["finished"]
    assert yaml.safe_load((run.folder / "params.yaml").read_text()) == {"SEED": 1}


def test_a_run_goes_on_with_the_data_it_was_trained_on(tmp_path):
    run = opened(tmp_path)
    run.begin({"seed": 1}, {"fer2013": {"training data": "abc"}})
    run.begin({"seed": 1}, {"fer2013": {"training data": "new"}})  # nothing was learned of "abc"
    inside(run, "fer2013/last.pt").write_text("trained")
    run.finish()
    before = {path.name: path.read_bytes() for path in run.folder.glob("*.*")}
    with pytest.raises(RunError, match='training data was "new" and is "abc"'):
        opened(tmp_path).begin({"seed": 2}, {"fer2013": {"training data": "abc"}})
    assert before == {path.name: path.read_bytes() for path in run.folder.glob("*.*")}


def test_a_run_that_trains_elsewhere_is_neither_moved_nor_taken(tmp_path):
    run = opened(tmp_path)
    with sole_writer(inside(run, "fer2013/last.pt").parent):
        for resume in ("never", "auto", str(run.folder)):
            with pytest.raises(RunError, match=r"Another process trains in .*: wait for it"):
                opened(tmp_path, resume=resume)
        assert opened(tmp_path, "").folder != run.folder
        with pytest.raises(FolderInUseError, match="Another process trains in"):
            sole_writer(run.folder / "fer2013").__enter__()
    assert opened(tmp_path, resume="never").folder == run.folder


def test_a_probe_that_cannot_be_taken_away_says_nothing_about_a_folder(tmp_path, monkeypatch):
    def held(*_, **__):
        raise PermissionError(errno.EACCES, "held by a scanner")

    run = opened(tmp_path)
    monkeypatch.setattr(runs.Path, "unlink", held)
    assert opened(tmp_path).folder == run.folder


def test_parameters_that_changed_after_opening_are_not_trained_with(run):
    run.expect(FINGERPRINT)
    with pytest.raises(RunError, match=r"seed was 1 and is 2.*new RUN_NAME"):
        run.expect({**FINGERPRINT, "seed": 2})


def test_a_copy_that_was_broken_off_is_never_continued(tmp_path):
    whole = opened(tmp_path / "runs", name="")
    whole.folder.rename(tmp_path / "runs" / f".{whole.name}.partial")
    assert not opened(tmp_path / "runs", name="").resumed


def test_drawn_and_real_are_never_one_run(tmp_path):
    opened(tmp_path)
    with pytest.raises(RunError, match="origin"):
        opened(tmp_path, origin="real")


def test_auto_without_a_name_takes_the_newest_unfinished_of_its_kind(tmp_path, clock):
    opened(tmp_path, "oldest")
    middle = opened(tmp_path, "middle")
    opened(tmp_path, "other", fingerprint={"seed": 9})
    opened(tmp_path, "done").finish()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert opened(tmp_path, "").folder == middle.folder
    middle.finish()
    assert opened(tmp_path, "").name == "oldest"
    opened(tmp_path, "").finish()
    assert opened(tmp_path, "").name.startswith("fer-")


def test_never_moves_aside_and_deletes_nothing(tmp_path):
    for text in ("first", "second", "third"):
        inside(opened(tmp_path, resume="never"), "mark").write_text(text)
    assert listing(tmp_path) == ["a", "a-1", "a-2"]
    marks = [(tmp_path / name / "mark").read_text() for name in ("a-1", "a-2", "a")]
    assert marks == ["first", "second", "third"]


def test_a_folder_that_holds_only_the_notebook_being_executed_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "executed.ipynb").write_text("{}")
    assert not opened(tmp_path).resumed
    assert "executed.ipynb" in listing(tmp_path / "a")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.doc").write_text("years")
    with pytest.raises(RunError, match="not a run folder"):
        opened(tmp_path)
    opened(tmp_path, resume="never")
    assert (tmp_path / "a-1" / "thesis.doc").read_text() == "years"


def test_a_path_is_continued_where_it_stands(tmp_path):
    first = opened(tmp_path / "elsewhere")
    again = opened(tmp_path / "runs", "", resume=str(first.folder))
    assert again.folder == first.folder
    with pytest.raises(RunError, match="seed"):
        opened(tmp_path / "runs", "", {"seed": 2}, resume=first.folder)
    for wrong in ("Auto", first.folder.parent):
        with pytest.raises(RunError, match=r"wants the run's own folder.*runs/kaggle.* or 'never'"):
            opened(tmp_path, resume=wrong)


def test_a_read_only_folder_is_copied_first_and_the_copy_found_again(tmp_path, monkeypatch):
    first = opened(tmp_path / "input")
    inside(first, "checkpoints/last").write_text("weights")
    for path in (inside(first, "checkpoints/last"), inside(first, "checkpoints"), first.folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    read_only(monkeypatch, first.folder)
    try:
        again = opened(tmp_path / "runs", "", resume=first.folder)
        assert again.folder == tmp_path / "runs" / "a"
        assert inside(again, "checkpoints/last").read_text() == "weights"
        assert all(p.stat().st_mode & stat.S_IWUSR for p in again.folder.rglob("*"))
        assert "copied to" in again.sentence
        assert opened(tmp_path / "runs", "", resume=first.folder).folder == again.folder
        assert listing(tmp_path / "runs") == ["a"]
    finally:
        for path in (first.folder, first.folder / "checkpoints"):
            path.chmod(0o755)


def test_a_copy_never_lands_on_another_run(tmp_path, monkeypatch):
    first = opened(tmp_path / "input")
    other = opened(tmp_path / "runs", fingerprint={"seed": 5})
    read_only(monkeypatch, first.folder)
    again = opened(tmp_path / "runs", "", resume=first.folder)
    assert again.name == "a-1"
    assert json.loads(inside(other, "run.json").read_text())["fingerprint"]["seed"] == 5


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An empty folder in the place where Kaggle mounts what is attached."""
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path / "input")
    return tmp_path / "input"


@pytest.mark.parametrize("mount", ["faces", "notebooks/somebody/faces"])
@pytest.mark.parametrize("name", ["a", ""])
def test_an_attached_unfinished_run_is_copied_and_continued(tmp_path, inputs, mount, name):
    first = opened(inputs / mount / "runs")
    inside(first, "affectnet/last.pt").write_text("weights")
    before = {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()}
    again = opened(tmp_path / "runs", name)
    assert again.folder == tmp_path / "runs" / "a"
    assert again.resumed
    assert inside(again, "affectnet/last.pt").read_text() == "weights"
    assert again.sentence == f"Continues {first.folder}, copied to {again.folder}."
    assert {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()} == before
    # What was done here since counts, not what is attached.
    inside(again, "affectnet/last.pt").write_text("more")
    assert inside(opened(tmp_path / "runs", name), "affectnet/last.pt").read_text() == "more"
    assert listing(tmp_path / "runs") == ["a"]


@pytest.mark.parametrize("changes", [{}, {"lr": 1.0}], ids=["alike", "other parameters"])
@pytest.mark.parametrize("name", ["a", ""])
def test_a_run_that_broke_off_before_training_hides_no_attached_one(
    tmp_path, inputs, name, changes
):
    early = opened(tmp_path / "runs", name, {**FINGERPRINT, **changes})
    first = opened(inputs / "faces" / "runs")
    opened(inputs / "later" / "runs")  # newer, but it broke off before training, too
    inside(first, "affectnet/last.pt").write_text("weights")
    again = opened(tmp_path / "runs", name)
    assert again.sentence == f"Continues {first.folder}, copied to {tmp_path / 'runs' / 'a'}."
    assert opened(tmp_path / "runs", name).folder == again.folder  # and what is here goes on
    assert len(listing(tmp_path / "runs")) == 2 and inside(early, "run.json").exists()


def test_of_the_attached_runs_the_newest_that_fits_is_continued(tmp_path, inputs, clock):
    opened(inputs / "z-oldest")
    second = opened(inputs / "b-newer").folder
    opened(inputs / "done", "finished").finish()
    opened(inputs / "other", "seed", fingerprint={"seed": 9})
    (inputs / "broken").mkdir()
    (inputs / "broken" / "run.json").write_text("{")
    again = opened(tmp_path / "runs")
    assert str(second) in again.sentence
    # A third session with both outputs attached goes on with the one that came further.
    again.folder.rename(inputs / "a-third")
    assert str(inputs / "a-third") in opened(tmp_path / "runs").sentence


@pytest.mark.parametrize("name", ["test", "train"])
def test_an_attached_run_may_be_called_like_a_split(tmp_path, inputs, name):
    (inputs / "faces" / "train" / "happy").mkdir(parents=True)
    opened(inputs / "notebooks" / "runs", name)
    assert opened(tmp_path / "runs", name).resumed


def test_a_copy_beside_a_taken_name_is_used_again(tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)  # somebody else's
    source = opened(tmp_path / "attached").folder
    read_only(monkeypatch, source)
    first = opened(tmp_path / "runs", "", resume=source)
    assert first.name == "a-1"
    inside(first, "fer2013/last.pt").write_text("more")
    assert opened(tmp_path / "runs", "", resume=source).folder == first.folder
    assert listing(tmp_path / "runs") == ["a", "a-1"]


def test_an_attached_run_that_does_not_fit_is_named_and_left_alone(tmp_path, inputs):
    other = opened(inputs / "faces", fingerprint={"seed": 9})
    run = opened(tmp_path / "runs", fingerprint={"seed": 1})
    assert not run.resumed
    assert str(other.folder) in run.sentence
    assert "seed was 9 and is 1" in run.sentence


def test_without_auto_nothing_attached_is_continued(tmp_path, inputs):
    opened(inputs / "faces")
    assert not opened(tmp_path / "runs", resume="never").resumed
    assert not opened(tmp_path / "runs", "", resume="never").resumed


def test_other_code_is_said_and_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "1111")
    opened(tmp_path)
    monkeypatch.setenv("FER_COMMIT", "2222")
    assert "1111" in opened(tmp_path).sentence
    assert "2222" in opened(tmp_path).sentence


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
@pytest.mark.skipif(os.name == "nt", reason="Windows folders ignore the mode")
def test_an_unwritable_output_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunError, match="OUTPUT_DIR"):
            opened(tmp_path / "runs")
    finally:
        tmp_path.chmod(0o755)


def test_an_output_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="OUTPUT_DIR"):
        opened(tmp_path / "runs")


def test_a_full_disk_is_said_before_training_and_leaves_nothing(tmp_path, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(RunError, match="disk is full"):
        opened(tmp_path / "runs")
    assert listing(tmp_path / "runs") == []


@pytest.mark.parametrize("name", ["../a", "a/b", "..", "."])
def test_a_run_name_is_one_folder(tmp_path, name):
    with pytest.raises(RunError, match="RUN_NAME"):
        opened(tmp_path, name)


def test_a_file_that_another_program_holds_is_no_bad_folder(tmp_path, monkeypatch):
    path = tmp_path / "predictions.csv"
    path.write_text("")
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt", strerror=os.strerror))
    with pytest.raises(RunError, match="close the program that"), files.explained("write", path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(RunError, match="or a file in it"), files.explained("move aside", tmp_path):
        raise PermissionError(errno.EACCES, "Access is denied")
    with pytest.raises(RunError, match="disk is full"), files.explained("copy to", tmp_path):
        raise runs.shutil.Error([("a", "b", f"[Errno 28] {os.strerror(errno.ENOSPC)}")])
