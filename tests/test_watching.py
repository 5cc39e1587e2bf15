"""What a person sees while training, and that nobody else sees it."""

import base64
import io
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from fer_helpers import watching
from fer_helpers.watching import (
    epoch_bar,
    event_writer,
    events_folder,
    watch_epochs,
)
from tests.tiny import kept_in, train

ROWS = [{"epoch": e, "train_loss": 2 / e, "selection_accuracy": 1 - 0.5 / e} for e in range(1, 6)]


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """No terminal; and no front end, as no test has a kernel."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)


def test_a_bar_where_somebody_watches_and_not_in_a_log(monkeypatch, capsys):
    for watched in (False, True):
        monkeypatch.setattr("fer_helpers.front_end.front_end", lambda watched=watched: watched)
        with epoch_bar("AffectNet 1/3", 100, 40) as bar:
            bar.update(60)
            assert bar.disable is not watched
        assert ("AffectNet 1/3" in capsys.readouterr().err) is watched
    assert (bar.initial, bar.total, bar.unit) == (40, 100, "img")


# Curves


def executed(watched):
    """The outputs of a cell that watches three epochs, with or without somebody before it."""
    source = (
        "from fer_helpers import plot_style, watching\n"
        f"watching.front_end = lambda: {watched}\n"
        "def draw(history):\n"
        "    figure = plot_style.new_figure(1, '', '', width=len(history))[0]\n"
        "    plot_style.plt.close(figure)\n"
        "    return figure\n"
        "on_epoch = watching.watch_epochs(draw)\n"
        "for n in (1, 2, 3):\n    on_epoch(list(range(n)))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [output for output in notebook.cells[0].outputs if "data" in output]


def test_curves_grow_in_one_place_of_an_open_notebook():
    (output,) = executed(True)
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert picture.width == 3 * picture.height  # the third of three figures


def test_an_executed_notebook_shows_no_curves():
    assert executed(False) == []


def test_nothing_is_drawn_for_nobody():
    watch_epochs(lambda _: pytest.fail("drawn"))(ROWS)


# TensorBoard


def points(folder):
    """What TensorBoard shows: name -> [(epoch, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("saved", [1, 2, 3], ids="saved {}".format)
def test_tensorboard_shows_every_epoch_once_however_often_it_was_resumed(tmp_path, saved):
    """Three epochs are written, a kill takes all but `saved` of them back, the rest comes again."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    first, second = event_writer(tmp_path), event_writer(tmp_path)
    for n in (1, 2, 3):
        first([{**row, "train_loss": -1.0} for row in ROWS[:n]])
    for n in range(saved + 1, 6):
        second(ROWS[:n])
    for name in ("train_loss", "selection_accuracy"):
        expected = [(row["epoch"], pytest.approx(row[name])) for row in ROWS]
        assert points(tmp_path)[name] == expected


def test_tensorboard_gets_what_the_history_holds_and_changes_nothing(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    watch = watch_epochs(lambda _: pytest.fail("drawn"), tmp_path / "events")
    _, result = train(tmp_path / "watched", on_epoch=watch)
    shown = points(tmp_path / "events")
    assert shown.keys() == result.history[0].keys() - {"epoch"}
    for name, curve in shown.items():
        assert [value for _, value in curve] == pytest.approx([r[name] for r in result.history])
    assert kept_in(tmp_path / "watched") == ["best.safetensors", "last.pt"]


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: True)
    assert events_folder(tmp_path / "x") == tmp_path / "x" and not capsys.readouterr().out
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: None)
    assert events_folder(tmp_path / "x") is None
    said = "TENSORBOARD is on, but the package is not here: pip install tensorboard.\n"
    assert capsys.readouterr().out == said
