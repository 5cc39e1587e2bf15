"""The benchmarks run to their tables, on drawn faces and as little as they allow."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fer_helpers import data, training
from fer_helpers.checkpoints import load_model
from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import draw_face, write_demo_faces
from fer_helpers.splits import Splits
from tests.tiny import faces

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "attention_cost": "--width 16 --batch 4 --size 32 --rounds 2 --arms none 'se, last' "
    "--device auto",
    "decoding": "--counts 800",
    "evaluation": "--n 1000 --threads 1",
    "inference": "--width 16 --seconds 0.1 --threads 1 --backends eager onnx int8",
    "input_pipeline": "--count 64 --seconds 0.1 --rounds 1",
    "training": "--sizes 32 --width 16 --rounds 1 --steps 1 --warm 1 --threads 1",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_table(name):
    if name == "inference":
        pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *shlex.split(SMALL[name])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 2 and "not run" not in done.stdout


def test_inference_wants_both_folders_or_none():
    command = [sys.executable, str(BENCHMARKS / "inference.py"), "--train", "data"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--train and --test" in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("time_to_accuracy --params nix.yaml", "nix.yaml cannot be read"),
        ("time_to_accuracy --data nix", "there is no folder"),
        ("distill --teachers a --start nix.safetensors", "no model file at nix.safetensors"),
        ("average a b --out mean.safetensors", "no model file at a"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(command, said):
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *options],
        capture_output=True, text=True, cwd=BENCHMARKS.parent,
    )  # fmt: skip
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_inference_scores_no_network_of_other_classes(monkeypatch):
    # Not the real one: imported now it would keep the patched loader for later tests.
    monkeypatch.setitem(sys.modules, "ablation", SimpleNamespace(cut_slice=None))
    monkeypatch.setattr(data, "load_fer2013", lambda *_, **__: Splits(faces(), None, (), ""))
    read = runpy.run_path(str(BENCHMARKS / "inference.py"))["data"]
    with pytest.raises(SystemExit, match=r"knows Contempt, Happy: not the classes of train\."):
        read(SimpleNamespace(train="train", test="test"), ("Contempt", "Happy"))


def test_the_benchmark_of_prediction_prints_its_tables(tmp_path):
    for extra in ("cv2", "onnxruntime"):
        pytest.importorskip(extra, reason="needs the extras [faces,export]")
    photo = Image.new("RGB", (640, 480), (214, 219, 224))
    photo.paste(draw_face("Happy", 3, size=240), (200, 100))
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "crops").mkdir()
    draw_face("Happy", 1, size=48).save(tmp_path / "crops" / "1.png")
    command = [sys.executable, str(BENCHMARKS / "prediction.py"), "--photo", "photo.jpg"]
    command += ["--crops", "crops", "--repeats", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for words in ("| ONNX, int8 |", "to the first answer", "A photo of 200 megapixels"):
        assert words in done.stdout


def test_time_to_accuracy_scores_public_test_once_and_continues(tmp_path, monkeypatch, capsys):
    data = write_demo_faces(tmp_path / "drawn", per_class=12)
    fer = data / "fer2013"
    splits = load_fer2013(fer / "train", fer / "test", max_bad_share=0.1, cache_dir=tmp_path)
    (tmp_path / "slice.txt").write_text("\n".join(splits.train.files[::3]))
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "ablation", raising=False)
    program = runpy.run_path(str(BENCHMARKS / "time_to_accuracy.py"))["main"]
    monkeypatch.setattr(sys.modules["ablation"], "SLICE", tmp_path / "slice.txt")
    small = ["FER_EPOCHS=1", "MAX_BAD_SHARE=0.1", "BATCH_SIZE=16", "WIDTH=16", "IMAGE_SIZE=32",
             "START_SIZE=0"]  # fmt: skip
    arguments = [
        "time_to_accuracy", "--params", str(BENCHMARKS.parent / "params" / "cpu.yaml"),
        "--data", str(data), "--out", str(tmp_path / "out"), "--hold-out", "12", "--set", *small,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*arguments, "TIME_BUDGET_MINUTES=0.0001"])
    with pytest.raises(SystemExit, match="the same command continues"):
        program()
    monkeypatch.setattr(sys, "argv", arguments)
    program()
    said = capsys.readouterr().out
    assert "PublicTest" in said and "PrivateTest" not in said and "one view" in said
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    reached = "reached" if results[0]["numbers"]["accuracy"] >= 0.6753 else "not reached"
    assert said.strip().endswith(f"the original's 67.53% {reached}.")
    assert {entry["stamp"]["split"] for entry in results} == {"PublicTest"}
    assert load_model(tmp_path / "out").extra["origin"] == "drawn"
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("trained again"))
    program()
    assert (
        capsys.readouterr().out.splitlines()[-1].split(":")[1]
        == said.splitlines()[-1].split(":")[1]
    )
