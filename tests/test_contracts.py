"""Promises of the repository as a whole: pairs, stored outputs, packaging, no private traces."""

import ast
import importlib.metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
import yaml
from check_notebooks import problems
from jupytext.config import load_jupytext_config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn.linear_model import LogisticRegression

import fer_helpers
from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import write_demo_faces
from notebooks import build

ROOT = Path(__file__).resolve().parents[1]
MAIN = ROOT / "Facial Emotion Recognition.ipynb"
PAIRS = build.pairs()
NOTEBOOKS = [MAIN, *sorted(ROOT.glob("notebooks/*.ipynb"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(path: Path) -> str:
    return path.stem


def tracked() -> list[Path]:
    """Every file that git knows, or would add."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def stored(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def printed(notebook: dict) -> str:
    """All text that a notebook's outputs show."""
    texts = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            data = output.get("data", {})
            texts += [text for kind, text in data.items() if not kind.startswith("image/")]
    return "\n".join(str(text) for text in texts)


# Pairs


def test_a_module_is_written_in_cells_and_paired_or_plain():
    for path in ROOT.glob("fer_helpers/*.py"):
        in_cells = re.search(r"^# %%", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert bool(in_cells) == (path in PAIRS), path.name


def test_every_notebook_has_a_script():
    assert set(NOTEBOOKS) == set(PAIRS.values())


@pytest.mark.parametrize("script", PAIRS, ids=named)
def test_pair_has_the_same_content(script):
    notebook = PAIRS[script]
    assert notebook.exists(), f"{notebook.name} is missing: run `make notebooks`"
    text = jupytext.writes(
        jupytext.read(notebook), fmt="py:percent", config=load_jupytext_config(str(script))
    )
    assert text == script.read_text(encoding="utf-8"), "the pair differs: run `make notebooks`"


@pytest.mark.parametrize("script", PAIRS, ids=named)
def test_paired_script_has_no_main_guard_and_no_relative_import(script):
    text = script.read_text(encoding="utf-8")
    assert "__main__" not in text  # in the twin, __name__ is __main__
    assert not re.search(r"^\s*from \.", text, re.MULTILINE)


# Stored notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_may_be_committed(path):
    assert problems(path) == []
    nbformat.validate(stored(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_was_run_once_from_top_to_bottom(path):
    code = [cell for cell in stored(path).cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_outputs_show_no_address_in_memory(path):
    assert not re.search(r" at 0x[0-9a-f]{6,}", printed(stored(path)))


def test_cells_of_the_main_notebook_are_short():
    cells = [cell for cell in stored(MAIN).cells if cell.cell_type == "code"]
    long = {
        cell.source.splitlines()[0]: len(cell.source.splitlines())
        for cell in cells
        if len(cell.source.splitlines()) > 15 and "parameters" not in cell.metadata.get("tags", [])
    }
    assert not long


def accuracy_of_the_demo() -> float:
    """The headline of the stored main notebook, in percent."""
    line = r"FER2013 PrivateTest, drawn faces: \d+ images\naccuracy +(\d+\.\d+) %"
    return float(re.search(line, printed(stored(MAIN))).group(1))


def test_drawn_faces_are_neither_too_easy_nor_too_hard():
    assert 75 <= accuracy_of_the_demo() <= 95


@pytest.mark.slow
def test_drawn_faces_need_more_than_a_linear_classifier(tmp_path):
    drawn = write_demo_faces(tmp_path / "drawn") / "fer2013"
    reading = {"cache_dir": tmp_path, "size": 48, "max_bad_share": 0.01}
    splits = load_fer2013(drawn / "train", drawn / "test", **reading)
    test = splits.tests[0]
    train_pixels, pixels = (f.images().reshape(len(f), -1) / 255 for f in (splits.train, test))
    linear = LogisticRegression(max_iter=2000).fit(train_pixels, splits.train.labels)
    assert test.split == "PrivateTest"
    assert 100 * linear.score(pixels, test.labels) <= accuracy_of_the_demo() - 10


def test_papermill_understands_the_parameters_cell():
    parameters = papermill.inspect_notebook(str(MAIN))
    cell = next(c for c in stored(MAIN).cells if "parameters" in c.metadata.get("tags", []))
    lines = [line for line in ast.parse(cell.source).body if not isinstance(line, ast.Expr)]
    assert list(parameters) == [line.target.id for line in lines]  # all are `NAME: type = value`
    for name, found in parameters.items():
        assert name.isupper(), name
        assert found["inferred_type_name"] in {"str", "int", "float", "bool"}, name


# What must not be in any file

MACHINE = re.compile(
    r"(?<![\w./~-])/(?:work|tmp|root|opt|home|Users)/"
    # where an installer is told to look, and the form that its index has
    r"|--(?:extra-)?index-url|--find-links|--trusted-host|/simple\b",
    re.IGNORECASE,
)

HOST = re.compile(
    r"https?://([\w.{}\[\]()-]+)|(?<![\w.@-])((?:[a-z0-9-]+\.)+(?:org|com|io|dev))(?![\w-])",
    re.IGNORECASE,
)

# Papers and documentation, where data, photos and the face detector come from, and loopback. No
# installer's host is among them: lock files list versions and hashes alone.
HOSTS = {
    "127.0.0.1", "localhost", "arxiv.org", "drive.google.com", "git-lfs.github.com", "github.com",
    "jupyter-client.readthedocs.io", "kaggle.com", "www.kaggle.com",
}  # fmt: skip


def test_no_foreign_host_and_no_machine_path():
    found = []
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights
        if path.suffix == ".ipynb":  # the letters of a picture may spell anything
            notebook = json.loads(text)
            sources = ["".join(cell["source"]) for cell in notebook["cells"]]
            text = "\n".join([*sources, printed(notebook), json.dumps(notebook["metadata"])])
        hits = [hit.group() for hit in MACHINE.finditer(text)]
        hosts = [host for pair in HOST.findall(text) for host in pair if host]
        hits += [host for host in hosts if host.lower() not in HOSTS]
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in hits]
    assert not found


@pytest.mark.parametrize(
    "name", ["data/x.jpg", "runs/x/metrics.json", "build/x", ".venv/x", ".venv-ci/x"]
)
def test_datasets_and_results_are_ignored(name):
    tracked()  # skips without git and outside a checkout
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0


# Packaging


EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = ("faces", "export", "explain", "kaggle", "dev")  # by README, make and conda


def requirements(extras=EXTRAS) -> list[str]:
    return PROJECT["dependencies"] + [entry for extra in extras for entry in EXTRAS[extra]]


def test_conda_environment_installs_what_the_project_declares():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(entry for entry in environment["dependencies"] if isinstance(entry, dict))["pip"]
    assert pip[-1] == "-e ."
    assert sorted(pip[:-1]) == sorted(requirements(INSTALLED))


def test_project_sets_lower_bounds_only():
    for entry in requirements():
        assert [part.operator for part in Requirement(entry).specifier] == [">="], entry


def pins() -> list[str]:
    """The lines of the lock. It holds every extra: their tests would be skipped without them."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_lock_pins_what_the_project_declares():
    form = re.compile(r'[a-z0-9-]+==[0-9][\w.]*(; platform_system == "Linux")?')
    assert [line for line in pins() if not form.fullmatch(line)] == []
    versions = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, pins())}
    assert list(versions) == sorted(versions) and len(versions) == len(pins())
    for wanted in map(Requirement, requirements()):
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier


def needed(name: str, extras: frozenset[str], found: set) -> None:
    """Add a package and what it needs, as the installed packages declare it."""
    key = (canonicalize_name(name), extras)
    if key not in found:
        found.add(key)
        for entry in map(Requirement, importlib.metadata.requires(name) or []):
            contexts = [{"extra": extra} for extra in (*extras, "")]
            if entry.marker is None or any(map(entry.marker.evaluate, contexts)):
                needed(entry.name, frozenset(entry.extras), found)


def is_installed(pin: Requirement) -> bool:
    try:
        return importlib.metadata.version(pin.name) in pin.specifier
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11), reason="what the lock is made for"
)
def test_lock_pins_all_that_is_needed_and_nothing_else():
    others = [pin.name for pin in map(Requirement, pins()) if not is_installed(pin)]
    if others:  # never after `make setup`, and so never in continuous integration
        pytest.skip(f"not installed from the lock: {', '.join(others)}")
    found = set()
    for entry in map(Requirement, requirements()):
        needed(entry.name, frozenset(entry.extras), found)
    assert {name for name, _ in found} == {pin.name for pin in map(Requirement, pins())}


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == citation["version"] == fer_helpers.__version__
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_kaggle_template_says_everything_explicitly():
    template = json.loads((ROOT / "kaggle-kernel-metadata.json").read_text(encoding="utf-8"))
    owner, slug = template["id"].split("/")
    assert owner == "YOUR_KAGGLE_USERNAME"
    assert slug == re.sub(r"\W+", "-", template["title"].lower())  # else Kaggle renames it
    assert template["language"] == "python"
    assert template["kernel_type"] == "notebook"
    assert template["is_private"] is True
    assert template["enable_gpu"] is True
    assert template["enable_tpu"] is False
    assert template["enable_internet"] is True
    assert template["machine_shape"] == "NvidiaTeslaT4"  # a plain GPU may be one without kernels
    assert set(template["dataset_sources"]) == {
        "msambare/fer2013",
        "dollyprajapati182/balanced-affectnet",
    }
    for key in ("competition_sources", "kernel_sources", "model_sources", "keywords"):
        assert template[key] == []


def test_an_installed_package_holds_the_shipped_files():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert setuptools["setuptools"]["package-data"] == {"fer_helpers": ["weights/*"]}


def test_make_runs_the_commands_that_the_readme_shows():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    recipes = "\n".join(line for line in makefile.splitlines() if line.startswith("\t"))
    for variable, value in (
        ("$(BIN)/", ""),
        ("$(PY)", "python"),
        ("$(NOTEBOOK)", "Facial Emotion Recognition.ipynb"),
    ):
        recipes = recipes.replace(variable, value)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in (
        'papermill "Facial Emotion Recognition.ipynb" build/demo.ipynb -f params/demo.yaml',
        "ruff format --check .",
        "ruff check .",
        "ruff format .",
        "ruff check --fix .",
        'python -m pytest -n 2 -m "not slow and not e2e" tests',
        "python -m pytest -n 2 -m e2e tests",
        "python -m pytest -n 2 -m slow tests",
        "python -m pytest --nbval build/demo.ipynb",
        "python -m pytest -n 2 --dist loadscope --nbval-lax"
        ' "build/Facial Emotion Recognition.ipynb" notebooks',
        "python notebooks/build.py",
        "python -m fer_helpers.kaggle",
        "python -m fer_helpers.download data",
    ):
        assert command in readme, command
        assert command in recipes, command
    push = "kaggle kernels push -p build/kaggle"  # left to the reader, and named by `make help`
    assert push in readme and push in makefile


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=named)
def test_benchmarks_can_be_started(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # as python does with a script's folder
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime", "cv2", "kornia"):
            raise
        pytest.skip(f"needs {error.name}")
