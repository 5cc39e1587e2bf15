"""Widgets for a person in front of the notebook, one figure for everybody else."""

import sys
from types import SimpleNamespace

import IPython
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from fer_helpers import front_end, prediction
from fer_helpers.front_end import explore

DRAW = """
from fer_helpers.front_end import explore, front_end

def draw(face="a", share=0.5):
    return f"drawn {face} {share}"

kept = explore(draw, face=["a", "b"], share=(0.0, 1.0, 0.25))
print(front_end(), kept)
"""


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, here and by ipywidgets."""
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda *items, **_: displayed.extend(items))
    return displayed


@pytest.fixture
def watched(monkeypatch, shown):
    interaction = pytest.importorskip(
        "ipywidgets.widgets.interaction", reason="needs the extra [widgets]"
    )
    monkeypatch.setattr(interaction, "display", lambda *items, **_: shown.extend(items))
    monkeypatch.setattr(front_end, "front_end", lambda: True)


def test_without_a_front_end_the_defaults_are_shown_once(shown):
    calls = []

    def draw(face="a", share=0.5):
        calls.append((face, share))
        return f"{face} {share}"

    assert explore(draw, face=["a", "b"], share=(0.0, 1.0)) == "a 0.5"
    assert calls == [("a", 0.5)]
    assert shown == ["a 0.5"]


def test_nothing_to_draw_is_nothing_to_show(shown):
    assert explore(lambda face="a": None, face=["a"]) is None
    assert shown == []


def test_moving_a_widget_draws_again(watched, shown):
    def draw(face="b", share=0.5):
        return f"{face} {share}"

    assert explore(draw, face=["a", "b"], share=(0.0, 1.0, 0.25)) == "b 0.5"
    [box] = [item for item in shown if not isinstance(item, str)]
    shown.remove(box)
    assert shown == ["b 0.5"]  # the widgets start at the defaults
    menu, slider = box.children[:2]
    assert (menu.options, menu.value) == (("a", "b"), "b")
    assert (slider.min, slider.max, slider.step, slider.value) == (0.0, 1.0, 0.25, 0.5)
    assert not slider.continuous_update  # Grad-CAM on every tick would lag behind
    menu.value = "a"
    slider.value = 0.75
    assert shown[1:] == ["a 0.5", "a 0.75"]


def test_a_missing_ipywidgets_costs_one_line(monkeypatch, shown, capsys):
    monkeypatch.setattr(front_end, "front_end", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert explore(lambda face="a": face, face=["a", "b"]) == "a"
    assert shown == ["a"]
    assert "ipywidgets is missing: pip install ipywidgets" in capsys.readouterr().out


def test_an_ipywidgets_that_does_not_load_says_why(monkeypatch, shown, capsys, tmp_path):
    (tmp_path / "ipywidgets.py").write_text("import no_such_neighbor")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "ipywidgets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(front_end, "front_end", lambda: True)
    monkeypatch.setattr(prediction, "front_end", lambda: True)
    assert explore(lambda face="a": face, face=["a", "b"]) == "a"
    assert prediction.upload_widget() is None
    assert capsys.readouterr().out.count("does not load (No module named 'no_such_neighbor')") == 2


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({"content": {"code": "", "allow_stdin": True}}, True),
        ({"content": {"code": "", "allow_stdin": False}}, False),
        ({"content": {"comm_id": "1"}}, False),
        ({}, False),
    ],
)
def test_a_front_end_is_one_that_can_be_asked(monkeypatch, request_, answer):
    kernel = SimpleNamespace(get_parent=lambda channel: request_)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    assert front_end.front_end() is answer
    assert front_end.in_notebook()


def test_no_kernel_no_front_end(monkeypatch):
    assert not front_end.front_end()
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())  # a terminal
    assert not front_end.front_end() and not front_end.in_notebook()


@pytest.mark.slow
def test_executing_a_notebook_is_no_front_end_even_below_one(monkeypatch):
    # As `!papermill` in a notebook would inherit them.
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DRAW)])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown, printed = notebook.cells[0].outputs
    assert shown["data"] == {"text/plain": "'drawn a 0.5'"}
    assert printed["text"] == "False drawn a 0.5\n"


@pytest.mark.slow
def test_a_live_kernel_gets_widgets_that_draw_again():
    pytest.importorskip("ipywidgets", reason="needs the extra [widgets]")
    manager, client = start_new_kernel(kernel_name="python3")
    try:

        def outputs(code):
            """What a front end would be told to show, sending the cell as one does."""
            found = []
            client.execute_interactive(
                code, allow_stdin=True, timeout=300, stdin_hook=lambda message: None,
                output_hook=lambda message: found.append(message["content"]),
            )  # fmt: skip
            return [content for content in found if content.keys() & {"data", "text"}]

        first = outputs(DRAW)
        assert any("application/vnd.jupyter.widget-view+json" in c.get("data", {}) for c in first)
        assert {"name": "stdout", "text": "True drawn a 0.5\n"} in first
        moved = outputs(
            "from ipywidgets import Dropdown, Widget\n"
            "[menu] = [w for w in Widget.widgets.values() if isinstance(w, Dropdown)]\n"
            "menu.value = 'b'"
        )
        assert {"text/plain": "'drawn b 0.5'"} in [c.get("data") for c in moved]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
