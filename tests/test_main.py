"""The command line: `python -m fer_helpers`."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from fer_helpers.__main__ import expanded, main
from fer_helpers.checkpoints import save_model
from fer_helpers.demo_faces import draw_face
from fer_helpers.models import build_model
from fer_helpers.preprocess import Preprocess

NAMES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    net = build_model(7, backbone="resnet18", stem="small1", width=16, head_hidden=0)
    path = tmp_path_factory.mktemp("models") / "mein Modell é.safetensors"
    save_model(path, net.eval(), NAMES, Preprocess(size=32, grey=True), extra={"origin": "drawn"})
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "Fotos é ü"
    root.mkdir()
    for i in range(3):
        draw_face("Happy", i, size=48).save(root / f"Gesicht {i}.png")
    return root


def test_faces_become_lines_a_table_and_pictures(folder, checkpoint, capsys):
    code = main(
        [
            str(folder),
            "--model",
            checkpoint,
            "--csv",
            "neu/out é.csv",
            "--annotate",
            "ann",
            "--views",
            "2",
        ]
    )
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("assumed already cropped" in line and "%" in line for line in lines)
    table = pd.read_csv("neu/out é.csv")
    assert [Path(name).name for name in table.file] == [f"Gesicht {i}.png" for i in range(3)]
    assert table[list(NAMES)].sum(axis=1).tolist() == pytest.approx([1] * 3, abs=1e-4)
    assert sorted(path.name for path in Path("ann").iterdir()) == [
        f"Gesicht {i}.jpg" for i in range(3)
    ]
    again = Path("neu/out é.csv").read_bytes()
    assert main([str(folder), "--model", checkpoint, "--csv", "2.csv", "--views", "2"]) == 0
    assert Path("2.csv").read_bytes() == again


def test_the_threshold_of_the_command_marks_answers_as_uncertain(folder, checkpoint, capsys):
    for threshold, marked in (("0", 0), ("1", 3)):
        main([str(folder), "--model", checkpoint, "--min-confidence", threshold])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert sum(", uncertain" in line for line in lines) == marked


def test_unreadable_pictures_are_named_and_counted(folder, checkpoint, capsys):
    (folder / "kaputt.jpg").write_bytes(b"\xff\xd8\xff")
    code = main([str(folder), "gone.png", "--model", checkpoint, "--csv", "out.csv"])
    assert code == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert "kaputt.jpg" in output.err
    assert "gone.png" in output.err
    assert "2 of the inputs could not be read" in output.err
    assert pd.read_csv("out.csv").error.sum() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_written_all_the_same(folder, checkpoint):
    draw_face("Happy", 1, size=48).save(folder / "\udce9.png")
    assert main([str(folder), "--model", checkpoint, "--csv", "out.csv"]) == 0
    assert pd.read_csv("out.csv").file.str.endswith(r"\udce9.png").sum() == 1


def test_a_photo_without_a_detector_is_said_not_guessed(folder, checkpoint, capsys, monkeypatch):
    from fer_helpers import detectors

    detectors._default_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    Image.new("RGB", (640, 480)).save("photo.png")
    assert main(["photo.png", "--model", checkpoint]) == 0
    assert "no detector here" in capsys.readouterr().out
    assert main(["photo.png", "--model", checkpoint, "--crop", "none"]) == 0
    assert "%" in capsys.readouterr().out
    detectors._default_detector.cache_clear()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "gone.safetensors"], "gone.safetensors"),
        (["--model", "gone.onnx"], "gone.onnx"),
        (["--model", "x" * 5000], "There is no model file"),
        ([], "No trained model"),
        (["--min-confidence", "60"], "60 percent is 0.6"),
        (["--views", "0"], "views is 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(
    folder, checkpoint, capsys, monkeypatch, more, message
):
    monkeypatch.setattr("fer_helpers.checkpoints.SHIPPED", folder)
    needs_model = ["--model", checkpoint] if more and "--model" not in more else []
    assert main([str(folder), *needs_model, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_table_never_takes_the_place_of_a_picture(folder, checkpoint, capsys):
    photo = folder / "Gesicht 0.png"
    before = photo.read_bytes()
    assert main([str(folder), "--model", checkpoint, "--csv", str(photo)]) == 2
    assert "a name that ends in .csv" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize("name", ["out.zip", "out.csv.ZST"])
def test_archives_that_tables_are_not_packed_into_are_said_first(folder, checkpoint, capsys, name):
    assert main([str(folder), "--model", checkpoint, "--csv", name]) == 2
    said = capsys.readouterr()
    assert not said.out and ".csv or .csv.gz" in said.err
    assert not Path(name).exists()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such pipes")
def test_a_table_goes_into_a_pipe(folder, checkpoint):
    reader, writer = os.pipe()  # as the shell's >(...) and /dev/stdout before a | are
    assert main([str(folder), "--model", checkpoint, "--csv", f"/dev/fd/{writer}"]) == 0
    os.close(writer)
    with open(reader, encoding="utf-8") as table:
        assert len(pd.read_csv(table)) == 3
    os.mkfifo("pipe")
    lines = []

    def read():  # to its first end
        with open("pipe", encoding="utf-8") as table:
            lines.extend(table)

    worker = threading.Thread(target=read, daemon=True)
    worker.start()
    assert main([str(folder), "--model", checkpoint, "--csv", "pipe"]) == 0
    worker.join(60)
    assert len(lines) == 4


def test_which_model_answers_is_said_where_none_was_named(folder, checkpoint, capsys):
    main([str(folder), "--model", checkpoint])
    assert "Answers come from" not in capsys.readouterr().err
    (Path("runs") / "mine").mkdir(parents=True)
    (Path("runs") / "mine" / "model.safetensors").write_bytes(Path(checkpoint).read_bytes())
    main([str(folder)])
    shipped = capsys.readouterr().err
    assert "fer_helpers" in shipped and "Answers come from" in shipped  # "mine" saw drawn faces


def test_an_output_that_cannot_be_written_is_said_first(folder, checkpoint, capsys):
    Path("taken").write_text("a file")
    assert main([str(folder), "--model", checkpoint, "--csv", "taken/out.csv"]) == 2
    assert "taken" in capsys.readouterr().err


def test_answers_are_said_even_if_the_table_cannot_be_written(
    folder, checkpoint, capsys, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "out.csv")

    monkeypatch.setattr(pd.DataFrame, "to_csv", refuse)
    assert main([str(folder), "--model", checkpoint, "--csv", "out.csv"]) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3 and "out.csv cannot be written" in said.err
    Path("folder.csv").mkdir()
    assert main([str(folder), "--model", checkpoint, "--csv", "folder.csv"]) == 2
    said = capsys.readouterr()
    assert not said.out and "folder.csv cannot be written" in said.err


def test_a_reader_that_has_seen_enough_costs_no_table(folder, checkpoint, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self):
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self):
            return unused.fileno()

    with open("unused", "w") as unused:
        monkeypatch.setattr(sys, "stdout", Closed())
        assert main([str(folder), "--model", checkpoint, "--csv", "out.csv"]) == 0
        monkeypatch.undo()
    assert len(pd.read_csv(folder.parent / "out.csv")) == 3


def test_a_full_disk_leaves_the_old_table(folder, checkpoint, monkeypatch):
    def half(table, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device", str(path))

    Path("out.csv").write_text("old")
    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    assert main([str(folder), "--model", checkpoint, "--csv", "out.csv"]) == 2
    assert Path("out.csv").read_text() == "old"


def test_wrong_arguments_exit_with_2(capsys):
    for arguments in ([], ["a.jpg", "--crop", "some"], ["a.jpg", "--what"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: python -m fer_helpers" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = "import sys, runpy; sys.argv = ['fer_helpers', '--help']\n"
    code += "try:\n    runpy.run_module('fer_helpers', run_name='__main__')\n"
    code += "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "--min-confidence" in done.stdout
    assert "or the table could not be written, 130 stopped" in " ".join(done.stdout.split())


def test_balanced_reads_the_model_at_its_other_point(folder, tmp_path, capsys):
    torch.manual_seed(0)
    net = build_model(7, backbone="resnet18", stem="small1", width=16, head_hidden=0)
    kept = {"preprocess": Preprocess(size=32, grey=True)}
    save_model("plain.safetensors", net.eval(), NAMES, **kept)
    shift = [0.0, 99.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    save_model("both.safetensors", net, NAMES, **kept, extra={"balanced_shift": shift})
    main([str(folder), "--model", "both.safetensors"])
    assert "Disgust 100.0 %" not in capsys.readouterr().out
    assert main([str(folder), "--model", "both.safetensors", "--balanced"]) == 0
    assert capsys.readouterr().out.count("Disgust 100.0 %") == 3
    assert main([str(folder), "--model", "plain.safetensors", "--balanced"]) == 2
    assert "no balanced operating point" in capsys.readouterr().err


def test_wildcards_that_no_shell_expanded(folder):
    (folder / "a[1].png").write_bytes(b"")
    names = [
        f"{folder.name}/Ges*.png",
        f"{folder.name}/a[1].png",
        "no*.jpg",
        "http://127.0.0.1/a?b=*",
    ]
    faces = [str(Path(folder.name) / f"Gesicht {i}.png") for i in range(3)]
    assert [str(Path(name)) for name in expanded(names)[:3]] == faces
    assert expanded(names)[3:] == names[1:]
    assert [Path(name).name for name in expanded([f"{folder.name}/a[1]*"])] == ["a[1].png"]
