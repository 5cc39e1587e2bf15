"""The notebook, run by papermill to its end, once for every parameter file and twice for one."""

import json
import os
import re
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from fer_helpers.checkpoints import load_model
from fer_helpers.config import Config, read_parameters
from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import draw_face, write_demo_faces
from fer_helpers.evaluation import abstain_threshold
from fer_helpers.ferplus import VOTES

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "Facial Emotion Recognition.ipynb"
SCRIPT = ROOT / "notebooks" / "Facial Emotion Recognition.py"
FILES = sorted(ROOT.glob("params/*.yaml"))

# Everything small; what else a file says stays as it is.
TINY = {
    **dict.fromkeys(("AFFECTNET_DIR", "FER_TRAIN_DIR", "FER_TEST_DIR"), "drawn"),
    **{"MAX_IMAGES": 80, "SELECTION_SIZE": 80, "NEAR_TWINS": False, "MAX_BAD_SHARE": 0.1},
    **{"AFFECTNET_EPOCHS": 1, "FER_EPOCHS": 1, "PRETRAINED": "none", "COMPILE": False},
    **{
        "WIDTH": 16,
        "IMAGE_SIZE": 24,
        "START_SIZE": 0,
        "BATCH_SIZE": 16,
        "DEVICE": "cpu",
        "PRECISION": "fp32",
    },
    **{"TTA_VIEWS": 2, "BOOTSTRAP": 100, "ROBUSTNESS": False, "EMBEDDING": False},
    "MIN_CONFIDENCE": 0.6,
}

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for all runs, also of parallel workers, with the drawn faces in it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    write_demo_faces(base / "cache" / "drawn-faces")
    return base / "cache"


@pytest.fixture(scope="session")
def notebook(tmp_path_factory):
    """The notebook; made from its script where it has not been built yet."""
    if NOTEBOOK.exists():
        return NOTEBOOK
    path = tmp_path_factory.mktemp("notebook") / NOTEBOOK.name
    nbformat.write(jupytext.read(SCRIPT), path)
    return path


@pytest.fixture(scope="session")
def run(cache, notebook, tmp_path_factory):
    """Execute the notebook with a parameter file: gives the run folder and the values used."""

    def execute(file, notebook=notebook, **more):
        folder = tmp_path_factory.mktemp(file.stem)
        places = {"OUTPUT_DIR": str(folder / "runs"), "CACHE_DIR": str(cache), "RUN_NAME": "tiny"}
        values = {**read_parameters(file), **TINY, **places, **more}
        papermill.execute_notebook(
            notebook, folder / "out.ipynb", values, cwd=str(folder), progress_bar=False,
            kernel_name="python3", execution_timeout=1200,
        )  # fmt: skip
        return folder / "runs" / "tiny", values

    return execute


def printed(folder):
    """What the outputs of a run's notebook say; its sources hold the same words anyway."""
    notebook = nbformat.read(folder.parents[1] / "out.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs]
    return "\n".join(texts)


def listing(folder):
    """Every file below a folder with its size and date."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


EXTRAS = [
    "cv2",
    "onnx",
    "onnxruntime",
    "pytorch_grad_cam",
    "kaggle",
    "kagglehub",
    "tensorboard",
    "ipywidgets",
]


def test_every_section_runs_with_the_core_packages_alone(run, cache, tmp_path, monkeypatch):
    """With votes that agree with every label, other sets, one of them seen, and a photo to answer.

    And all faces of FER2013, so that those in train that also stand in its test can be dropped.
    """
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    drawn = cache / "drawn-faces"
    folders = drawn / "fer2013" / "train", drawn / "fer2013" / "test"
    fer = load_fer2013(*folders, cache_dir=cache, max_bad_share=0.1, size=24)
    files = np.concatenate([faces.files for faces in (fer.train, fer.selection, *fer.tests)])
    votes = pd.DataFrame({"file": np.unique(files), **dict.fromkeys(VOTES, 1)})
    votes.to_csv(tmp_path / "votes.csv", index=False)
    draw_face("Happy", 1, size=300).save(tmp_path / "me.png")
    folder, _ = run(
        ROOT / "params" / "cpu.yaml", FERPLUS_VOTES=str(tmp_path / "votes.csv"), FERPLUS_WEIGHT=0.5,
        EXTRA_TEST_DIRS=f"{drawn / 'affectnet'}, {drawn / 'fer2013'}", MAX_IMAGES=0,
        **dict.fromkeys(("DROP_TEST_TWINS", "DROP_CONFLICTS", "DROP_BLANKS"), True),
        PHOTO=str(tmp_path / "me.png"), TENSORBOARD=True,
    )  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    unseen, seen = metrics["cross_dataset"]
    assert unseen["numbers"]["n"] > 0 and unseen["seen"] == ""
    assert seen["numbers"]["n"] > 0 and seen["seen"] == "the same files as FER2013 train"
    said = printed(folder)
    assert "me.png:" in said
    for package in ("grad-cam", "opencv-python-headless", "tensorboard"):
        assert f"pip install {package}" in said
    assert "training faces have votes" in said and "No label is disputed" in said
    assert re.search(r"FER2013: [1-9]\d* training faces dropped", said)
    leak_free = pd.read_csv(folder / "predictions.csv")["leak_free"]
    assert set(leak_free.astype(str)) == {"True"}
    assert "not marked as finished" not in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_phase_1_alone(run):
    folder, _ = run(ROOT / "params" / "demo.yaml", PHASES="affectnet")
    assert len(load_model(folder).class_names) == 8


# What menus and sliders can ask for.
OTHER_CHOICES = """
asked = [cell_of(names[test.labels[0]], names[predicted[0]]), answered_with(0.95), looked_at(0)]
asked += [against(class_names[-1], class_names[0]), silence(0.9)]
assert all(figure is not None for figure in asked)
"""


def test_cells_can_be_run_again(run, notebook, tmp_path):
    """Those of phase 1 when phase 2 has ended: what is saved is phase 2's network all the same."""
    again = nbformat.read(notebook, as_version=4)
    sources = [cell.source for cell in again.cells if cell.cell_type == "code"]
    training = next(s for s in sources if "eight = copy.deepcopy(start)" in s)
    scoring = next(s for s in sources if "of_eight = score_tests" in s)
    evaluation = next(i for i, s in enumerate(sources) if "final = list(phases)[-1]" in s)
    for source in (training, scoring, *sources[evaluation:], OTHER_CHOICES):
        again.cells.append(nbformat.v4.new_code_cell(source))
    nbformat.write(again, tmp_path / "again.ipynb")
    demo = ROOT / "params" / "demo.yaml"
    folder, _ = run(demo, notebook=tmp_path / "again.ipynb", AFFECTNET_GREY=False, EMBEDDING=True)
    loaded, phase2 = load_model(folder), load_model(folder / "fer2013")
    assert loaded.extra["best_epoch"] == 1 and len(loaded.extra["balanced_shift"]) == 7
    assert (loaded.class_names, loaded.preprocess) == (phase2.class_names, phase2.preprocess)
    weights = phase2.model.state_dict()
    assert all(weights[name].equal(w) for name, w in loaded.model.state_dict().items())


REAL = ROOT / "data"


@pytest.mark.slow
@pytest.mark.skipif(
    not ((REAL / "affectnet").exists() and (REAL / "fer2013").exists()),
    reason="needs both datasets in data/ (make data-dev)",
)
def test_both_phases_run_on_real_faces(run):
    folders = {"AFFECTNET_DIR": str(REAL / "affectnet")}
    for part in ("train", "test"):
        folders[f"FER_{part.upper()}_DIR"] = str(REAL / "fer2013" / part)
    folder, _ = run(  # as decoded by earlier runs, if there were any
        ROOT / "params" / "local.yaml", MAX_IMAGES=200, IMAGE_SIZE=48, CACHE_DIR="", **folders
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    stamps = [entry["stamp"] for entry in metrics["results"] if entry["headline"]]
    assert [stamp["dataset"] for stamp in stamps] == ["FER2013", "AffectNet"]
    assert {(stamp["origin"], stamp["n"]) for stamp in stamps} == {("real", 200)}
    assert pd.read_csv(folder / "history.csv")["phase"].tolist() == ["affectnet", "fer2013"]
    assert "FER2013: 200 faces in" in printed(folder)  # of train
    assert "not marked as finished" not in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


OTHERS = [file for file in FILES if file.stem != "demo"]


@pytest.mark.parametrize("file", OTHERS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(file, run, cache):
    check_run(file, run, cache)


def check_run(file, run, cache):
    """Execute the notebook with a parameter file and look at what it left; gives its folder."""
    before = listing(cache / "drawn-faces")
    folder, values = run(file)
    assert listing(cache / "drawn-faces") == before  # a run writes nothing beside its data
    assert yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")) == (
        Config.from_values(values, file.name).to_dict()
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {entry["stamp"]["origin"] for entry in metrics["results"]} == {"drawn"}
    phases = {"affectnet": "AffectNet", "fer2013": "FER2013"}
    if values["PHASES"] != "both":
        phases = {values["PHASES"]: phases[values["PHASES"]]}
    datasets = set(phases.values())
    assert {entry["stamp"]["dataset"] for entry in metrics["results"]} == datasets
    assert sum(entry["headline"] for entry in metrics["results"]) == len(phases)
    history = pd.read_csv(folder / "history.csv")
    assert history["phase"].tolist() == list(phases)
    predictions = pd.read_csv(folder / "predictions.csv")
    assert set(predictions["dataset"]) == datasets
    loaded = load_model(folder)
    assert len(loaded.class_names) == 7 and loaded.extra["origin"] == "drawn"
    assert loaded.extra["min_confidence"] == TINY["MIN_CONFIDENCE"]
    headline = metrics["results"][0]  # of the last phase, which was scored first
    assert headline["headline"]
    assert loaded.temperature == headline["numbers"]["temperature"] != 1
    assert headline["stamp"]["selection_set"].startswith("FER2013 PublicTest")
    chosen_on = predictions[predictions["split"] == "PublicTest"]
    shares = chosen_on[[f"p_{name}" for name in loaded.class_names]].to_numpy(np.float64)
    labels = chosen_on["truth"].map(loaded.class_names.index)
    threshold = abstain_threshold(shares, labels.to_numpy(), coverage=0.8)["threshold"]
    assert metrics["abstain"]["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert metrics["abstain"]["leak_free"]["n"] == headline["leak_free"]["n"]
    for phase in phases:
        assert load_model(folder / phase).preprocess.size == TINY["IMAGE_SIZE"]
    assert list((folder / "figures").glob("*.png"))
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "not marked as finished" not in card
    return folder


def test_the_demo_runs_twice_and_writes_the_same_bytes(run, cache, monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "the same")
    demo = ROOT / "params" / "demo.yaml"
    one, other = check_run(demo, run, cache), run(demo)[0]
    for name in ("metrics.json", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = load_model(one).model.state_dict(), load_model(other).model.state_dict()
    assert all(first[name].equal(second[name]) for name in first)
