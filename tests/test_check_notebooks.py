"""The guard of the commits: it refuses every picture that nobody vouches for, and says why."""

import json
import re

import nbformat
import pytest
from check_notebooks import LARGEST, fingerprint, main, problems

PNG = {"image/png": "iVBORw0KGgo="}
EMBEDDED = "data:image/png;base64,iVBORw0KGgo="
NOT_DRAWN = "stores pictures but its metadata lack data_origin: drawn"


def shows(data):
    output = nbformat.v4.new_output("display_data", data)
    return nbformat.v4.new_code_cell("show()", outputs=[output])


def write(path, *cells, **metadata):
    notebook = nbformat.v4.new_notebook(cells=list(cells), metadata=metadata)
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize(
    ("cell", "metadata", "problem"),
    [
        (shows(PNG), {}, NOT_DRAWN),
        (shows(PNG), {"data_origin": "real"}, NOT_DRAWN),
        (
            shows(PNG),
            {"data_origin": "drawn", "pictures_sha256": "0" * 64},
            "stores other pictures than `make notebooks` made from drawn faces",
        ),
        (shows({"text/html": "<p><svg><path/></svg></p>"}), {}, NOT_DRAWN),
        (shows({"text/html": f"<img src='{EMBEDDED}'>"}), {}, NOT_DRAWN),
        (nbformat.v4.new_markdown_cell(f"![a face]({EMBEDDED})"), {}, NOT_DRAWN),
        (
            nbformat.v4.new_markdown_cell("![](attachment:a.png)", attachments={"a.png": PNG}),
            {},
            NOT_DRAWN,
        ),
        (
            nbformat.v4.new_markdown_cell("A text."),
            {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
            "stores the state of widgets in its metadata, which may hold pictures",
        ),
        (
            nbformat.v4.new_code_cell("1 / 0", outputs=[nbformat.v4.new_output("error")]),
            {},
            "stores an error in cell 0",
        ),
        (
            nbformat.v4.new_markdown_cell("a" * LARGEST),
            {},
            r"is 1,500,\d\d\d bytes, more than 1,500,000",
        ),
    ],
    ids=[
        "picture",
        "picture of somebody",
        "other picture",
        "drawing in HTML",
        "picture in HTML",
        "picture in a text",
        "attachment",
        "widgets",
        "error",
        "too large",
    ],
)
def test_what_must_not_be_committed_is_refused(tmp_path, capsys, cell, metadata, problem):
    path = write(tmp_path / "a.ipynb", cell, **metadata)
    (found,) = problems(path)
    assert re.fullmatch(problem, found)
    fine = write(tmp_path / "fine.ipynb", nbformat.v4.new_markdown_cell("A text."))
    assert main([str(fine), str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{path} {found}; clear its outputs")


def test_drawn_pictures_that_bear_their_fingerprint_may_be_committed(tmp_path, capsys):
    path = write(
        tmp_path / "a.ipynb", shows(PNG), nbformat.v4.new_markdown_cell(f"![]({EMBEDDED})")
    )
    stamp = fingerprint(json.loads(path.read_text(encoding="utf-8")))
    cells = nbformat.read(path, as_version=4).cells
    write(path, *cells, data_origin="drawn", pictures_sha256=stamp)
    assert problems(path) == []
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == ""
