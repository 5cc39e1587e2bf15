import http.server
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from safetensors.torch import save_file
from torchvision.models import resnet18

from fer_helpers import kaggle
from fer_helpers.config import ConfigError
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.kaggle import KaggleError, package_modules, stage

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # what %%writefile or a careless copy would change
    "__init__.py": b'"""Faces."""\n',
    "empty.py": b"",
    "no_newline.py": b"x = 1",
    "blank_end.py": b"\n\nx = 1\n\n\n",
    "windows.py": b"x = 1\r\n",
    "quotes.py": 'x = """a\'b"""  # \\n {x} %%writefile é 😀\n'.encode(),
    "part/__init__.py": b"\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout in small: a notebook, its parameter file, a package, the template."""
    root = tmp_path / "project"
    for name, content in MODULES.items():
        path = root / "fer_helpers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in ("weights/model.safetensors", ".ipynb_checkpoints/empty-checkpoint.py"):
        path = root / "fer_helpers" / name
        path.parent.mkdir()
        path.write_bytes(b"not to be embedded")
    cells = [
        nbformat.v4.new_markdown_cell("# Faces", id="title"),
        nbformat.v4.new_code_cell("SEED: int = 42", metadata={"tags": ["parameters"]}, id="given"),
        nbformat.v4.new_code_cell(
            "print(SEED)", outputs=[nbformat.v4.new_output("stream", text="42")], id="shown"
        ),
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernelspec, "data_origin": "drawn"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, root / kaggle.NOTEBOOK)
    (root / "params").mkdir()
    (root / "params" / "kaggle.yaml").write_text("SEED: 7\nAFFECTNET_LR: 1e-3\n")
    shutil.copy(ROOT / kaggle.TEMPLATE, root)
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    return root


def stage_project(project, out="out", **keywords):
    keywords = {"parameters": project / "params" / "kaggle.yaml", "user": "tester"} | keywords
    return stage(project / out, root=project, **keywords)


def unpack(notebook, folder):
    """Run the embedding cell alone, as the first thing in an empty folder."""
    cell = next(c for c in notebook.cells if kaggle.TAG in c.metadata.get("tags", []))
    folder.mkdir()
    code = cell.source + "\nassert not [name for name in globals() if name.isupper()]"
    command = [sys.executable, "-"]  # as an argument it would be too long
    done = subprocess.run(
        command, input=code, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fer_helpers: {len(list(folder.rglob('*.py')))} modules\n"


# Staging


def test_embedded_modules_are_the_files_byte_for_byte(project, tmp_path):
    notebook = nbformat.read(stage_project(project), as_version=4)
    unpack(notebook, tmp_path / "empty")
    package = tmp_path / "empty" / "fer_helpers"
    found = {
        path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.*")
    }
    assert found == MODULES  # and no weights, no checkpoints of an editor


def test_staging_twice_gives_identical_bytes(project):
    first, second = stage_project(project, "a").parent, stage_project(project, "b").parent
    names = sorted(path.name for path in first.iterdir())
    assert names == ["facial-emotion-recognition.ipynb", "kernel-metadata.json"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert b"\r" not in (first / name).read_bytes()


def test_staged_notebook_has_parameters_modules_commit_and_no_outputs(project, monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "abc123")
    notebook = nbformat.read(stage_project(project), as_version=4)
    nbformat.validate(notebook)
    ids = ["title", "embedded-note", "embedded-modules", "given", "injected-parameters", "shown"]
    assert [cell.id for cell in notebook.cells] == ids
    assert "SEED = 7" in notebook.cells[4].source
    assert notebook.metadata.commit == "abc123"
    assert "os.environ[\"FER_COMMIT\"] = 'abc123'" in notebook.cells[2].source
    assert "data_origin" not in notebook.metadata
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_push_metadata_is_the_template_with_the_owner_set(project):
    metadata = json.loads((stage_project(project).parent / "kernel-metadata.json").read_text())
    template = json.loads((ROOT / kaggle.TEMPLATE).read_text())
    assert metadata == {**template, "id": "tester/facial-emotion-recognition"}


def test_without_a_user_the_environments_counts(project, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    staged = stage_project(project, user=None).parent
    assert '"somebody/facial-emotion-recognition"' in (staged / "kernel-metadata.json").read_text()


def test_without_a_user_the_placeholder_stays_and_is_said(project, monkeypatch, capsys):
    monkeypatch.setattr(kaggle, "ROOT", project)
    parameters = str(project / "params" / "kaggle.yaml")
    monkeypatch.setattr(
        kaggle, "stage", lambda out, **keywords: stage(out, root=project, **keywords)
    )
    out = str(project / "out")
    assert kaggle.main(["--out", out, "--parameters", parameters]) == 0
    printed = capsys.readouterr().out
    assert f"kaggle kernels push -p {out}" in printed
    assert "--user NAME" in printed
    assert kaggle.main(["--out", out, "--parameters", parameters, "--user", "me"]) == 0
    assert "--user NAME" not in capsys.readouterr().out
    (project / "file").write_text("")
    with pytest.raises(SystemExit):
        kaggle.main(["--out", str(project / "file"), "--parameters", parameters])
    assert "give a folder" in capsys.readouterr().err


def test_what_is_missing_is_said_in_one_sentence(project):
    for user in ("a/b", "jörg", "me\n"):
        with pytest.raises(KaggleError, match="no Kaggle user name"):
            stage_project(project, user=user)
    (project / "params" / "kaggle.yaml").write_text("SEEED: 7\n")
    with pytest.raises(ConfigError, match="SEED"):
        stage_project(project)
    (project / "params" / "kaggle.yaml").write_text("SEED: 7\n")
    notebook = nbformat.read(project / kaggle.NOTEBOOK, as_version=4)
    notebook.cells[1].metadata.tags = []
    nbformat.write(notebook, project / kaggle.NOTEBOOK)
    with pytest.raises(KaggleError, match="no cell tagged parameters"):
        stage_project(project)
    (project / kaggle.NOTEBOOK).unlink()
    with pytest.raises(KaggleError, match="make notebooks"):
        stage_project(project)


def test_staging_needs_no_torch():
    code = "import sys, fer_helpers.kaggle; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# The real notebook


def test_the_projects_own_notebook_is_small_valid_and_complete(tmp_path):
    staged = stage(tmp_path / "staged", user="tester")
    assert staged.stat().st_size <= 500_000
    notebook = nbformat.read(staged, as_version=4)
    nbformat.validate(notebook)
    values: dict = {}
    given = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    exec(given.source, values)
    before = dict(values)
    injected = next(cell for cell in notebook.cells if cell.id == "injected-parameters")
    exec(injected.source, values)
    expected = yaml.safe_load((ROOT / "params" / "kaggle.yaml").read_text(encoding="utf-8"))
    assert {name: values[name] for name in expected} == expected
    # An edit of the upper cell counts: the lower one sets nothing that is there already.
    special = {line.split(" = ")[0] for line in injected.source.splitlines() if " = " in line}
    assert special == {name for name in expected if before[name] != expected[name]}
    unpack(notebook, tmp_path / "empty")
    for name in package_modules(ROOT / "fer_helpers"):
        assert (tmp_path / "empty" / name).read_bytes() == (ROOT / name).read_bytes()


# The repository's notebook, opened by hand


def setup_cell() -> str:
    """The code that looks for the package, from the notebook that is opened without it."""
    cells = nbformat.read(ROOT / kaggle.NOTEBOOK, as_version=4).cells
    return next(cell.source for cell in cells if "if not HELPERS_URL" in cell.source)


def run_without_packages(code, folder, **environment):
    """In a folder of its own, with the standard library alone."""
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    command = [sys.executable, "-S", "-"]
    return subprocess.run(
        command, input=code, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("place", ["", "nothing-there.whl"])
def test_without_the_package_the_notebook_says_which_file_to_import(tmp_path, place):
    code = f"HELPERS_URL = {place!r}\n{setup_cell()}"
    done = run_without_packages(code, tmp_path / "empty", PIP_NO_INDEX="1")
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ModuleNotFoundError: fer_helpers is not here")
    assert "make kaggle" in said and "build/kaggle/*.ipynb" in said and "HELPERS_URL" in said


def test_helpers_url_is_installed_and_nothing_else(tmp_path):
    pytest.importorskip("pip")
    wheel = tmp_path / "fer_helpers-9.9-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: fer-helpers\nVersion: 9.9\nRequires-Dist: x\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fer_helpers/__init__.py", "print('here')")
        for name, text in about.items():
            file.writestr(f"fer_helpers-9.9.dist-info/{name}", text)
    code = f"HELPERS_URL = {str(wheel)!r}\n{setup_cell()}\nimport fer_helpers"
    place = tmp_path / "working"
    done = run_without_packages(code, place, PIP_TARGET=str(place), PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("here\n")


# The real command-line client against a server of our own


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers like Kaggle's API and keeps what it was sent in `server.received`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = self.path.rsplit("/", 1)[-1]
        self.server.received[call] = json.loads(body)
        kind, answer = "application/json", b"{}"
        if call == "SaveKernel":
            answer = b'{"ref": "/tester/faces", "url": "http://localhost/f", "versionNumber": 1}'
        if call == "DownloadDataset":
            kind, answer = "application/zip", dataset_archive(json.loads(body)["datasetSlug"])
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def dataset_archive(slug: str) -> bytes:
    """An archive as Kaggle packs it, with one file per split."""
    names = {
        "fer2013": ["train/angry/Training_1.jpg", "test/angry/PublicTest_2.jpg"],
        "balanced-affectnet": ["train/Anger/1.png", "val/Anger/2.png", "test/Anger/3.png"],
    }[slug]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, b"a face")
    return packed.getvalue()


@pytest.fixture
def client(tmp_path):
    """A function that runs the `kaggle` command; everything it sends ends in `received`."""
    if importlib.util.find_spec("kaggle") is None:
        pytest.skip("the kaggle extra is not installed")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.received = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path / "client-home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("KAGGLE_")
    } | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",  # plain http, so that the proxy can answer
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
        "KAGGLE_USERNAME": "tester",
        "KAGGLE_KEY": "sesame",
    }

    def run(*arguments, cwd):
        command = [sys.executable, "-m", "kaggle", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    run.received = server.received
    yield run
    server.shutdown()
    server.server_close()


def push(client, tmp_path) -> dict:
    """Stage the project, push it with the real client, return what the server received."""
    stage(tmp_path / "staged", user="tester")
    done = client("kernels", "push", "-p", "staged", cwd=tmp_path)
    assert "Kernel version 1 successfully pushed" in done.stdout, done.stdout + done.stderr
    assert "does not resolve" not in done.stdout
    return client.received["SaveKernel"]


def test_kaggle_client_pushes_what_was_staged(client, tmp_path):
    body = push(client, tmp_path)
    assert body["slug"] == "tester/facial-emotion-recognition"
    assert body["newTitle"] == "Facial Emotion Recognition"
    assert sorted(body["datasetDataSources"]) == [
        "dollyprajapati182/balanced-affectnet",
        "msambare/fer2013",
    ]
    assert body["isPrivate"] is True
    assert body["enableGpu"] is True
    assert body["enableInternet"] is True
    assert body["machineShape"] == "NvidiaTeslaT4"
    assert (body["language"], body["kernelType"]) == ("python", "notebook")
    received = nbformat.reads(body["text"], as_version=4)
    staged = nbformat.read(next((tmp_path / "staged").glob("*.ipynb")), as_version=4)
    assert [cell.source for cell in received.cells] == [cell.source for cell in staged.cells]
    assert received.metadata == staged.metadata
    assert "sesame" not in body["text"]


def test_kaggle_client_downloads_the_datasets_to_where_local_yaml_looks(client, tmp_path):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split() for line in lines if line.startswith("kaggle datasets download ")]
    assert len(commands) == 2
    for command in commands:
        done = client(*command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    local = yaml.safe_load((ROOT / "params" / "local.yaml").read_text(encoding="utf-8"))
    assert (tmp_path / local["FER_TRAIN_DIR"] / "angry" / "Training_1.jpg").exists()
    assert (tmp_path / local["FER_TEST_DIR"] / "angry" / "PublicTest_2.jpg").exists()
    assert (tmp_path / local["AFFECTNET_DIR"] / "train" / "Anger" / "1.png").exists()


PROBE = """\
import json, sys
print(json.dumps({name: module.__file__ for name, module in sorted(sys.modules.items())
                  if name.startswith("fer_helpers")}))"""


def run_as_on_kaggle(notebook: Path, folder: Path, inputs: Path | None = None, **parameters) -> str:
    """Run a staged notebook in a folder of its own; `fer_helpers` may come from nowhere else.

    There is no internet and nothing in the user's caches. `FER_KAGGLE_PYTHON` may name the Python
    of an environment with Kaggle's versions.

    Args:
        notebook: the staged file.
        folder: the working folder, made here.
        inputs: stands for `/kaggle/input`.
        parameters: replace those of `params/demo.yaml`.

    Returns:
        everything the notebook printed.
    """
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # closed
    environment |= dict.fromkeys(("HOME", "USERPROFILE"), str(folder.parent / "home"))
    environment["KAGGLE_KERNEL_RUN_TYPE"] = "Batch"
    demo = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text(encoding="utf-8"))
    (folder.parent / "values.yaml").write_text(yaml.safe_dump(demo | parameters))
    received = nbformat.read(notebook, as_version=4)
    if inputs is not None:
        code = f"from fer_helpers import mounts\nmounts.KAGGLE_INPUT = mounts.Path({str(inputs)!r})"
        at = next(i for i, c in enumerate(received.cells) if c.id == "embedded-modules") + 1
        received.cells.insert(at, nbformat.v4.new_code_cell(code))
    received.cells.append(nbformat.v4.new_code_cell(PROBE))
    nbformat.write(received, folder.parent / "received.ipynb")
    python = os.environ.get("FER_KAGGLE_PYTHON", sys.executable)
    command = [python, "-m", "papermill", "../received.ipynb", "../done.ipynb"]
    command += ["-f", "../values.yaml", "--no-progress-bar"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(folder.parent / "done.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    loaded = json.loads("".join(output.text for output in cells[-1].outputs))
    assert {"fer_helpers.models", "fer_helpers.training"} <= set(loaded)
    for name, file in loaded.items():
        assert Path(file).resolve().is_relative_to(folder.resolve()), name
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_received_notebook_runs_in_an_empty_folder(client, tmp_path):
    (tmp_path / "sent.ipynb").write_text(push(client, tmp_path)["text"], encoding="utf-8")
    run_as_on_kaggle(tmp_path / "sent.ipynb", tmp_path / "working")
    metrics = json.loads((tmp_path / "working" / "runs" / "demo" / "metrics.json").read_text())
    assert metrics["results"]


QUICK = {  # the same cells, few faces
    "BACKBONE": "resnet18",
    "PRETRAINED": "imagenet",
    "STEM": "imagenet",
    "INPUT_CHANNELS": 3,
    "WIDTH": 64,
    "IMAGE_SIZE": 24,
    "MAX_IMAGES": 120,
    "SELECTION_SIZE": 40,
    "AFFECTNET_EPOCHS": 2,
    "FER_EPOCHS": 2,
    "TTA_VIEWS": 1,
    "BOOTSTRAP": 100,
    "ROBUSTNESS": False,
    "EMBEDDING": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("mount", ["{slug}", "{kind}/{owner}/{slug}"])
def test_second_session_goes_on_where_the_first_was_stopped(tmp_path, mount):
    # Mounts as Kaggle lays them, in both of its ways, and the parameters of kaggle.yaml's kind.
    inputs = tmp_path / "kaggle" / "input"

    def attach(source, kind, owner, slug):
        target = inputs / mount.format(kind=kind, owner=owner, slug=slug)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        return target

    faces = write_demo_faces(tmp_path / "faces", per_class=15)
    attach(faces / "affectnet", "datasets", "dollyprajapati182", "balanced-affectnet")
    attach(faces / "fer2013", "datasets", "msambare", "fer2013")
    (tmp_path / "weights").mkdir()
    save_file(resnet18().state_dict(), tmp_path / "weights" / "resnet18.safetensors")
    attach(tmp_path / "weights", "datasets", "somebody", "imagenet-weights")
    parameters = QUICK | {
        "AFFECTNET_DIR": str(inputs / "balanced-affectnet"),
        "FER_TRAIN_DIR": str(inputs / "fer2013" / "train"),
        "FER_TEST_DIR": str(inputs / "fer2013" / "test"),
        "MAX_BAD_SHARE": 0.1,  # one broken file is a large share of so few
        "CACHE_DIR": str(tmp_path / "temp"),
        "RUN_NAME": "kaggle",
        "RESUME": "auto",
    }
    staged = stage(tmp_path / "staged", user="tester")
    printed = run_as_on_kaggle(
        staged, tmp_path / "first", inputs, **parameters, TIME_BUDGET_MINUTES=0.01
    )
    assert "A new run." in printed
    assert "backbone from resnet18.safetensors" in printed
    begun = tmp_path / "first" / "runs" / "kaggle"
    assert json.loads((begun / "run.json").read_text())["finished"] is False

    output = attach(tmp_path / "first", "notebooks", "tester", "facial-emotion-recognition")
    printed = run_as_on_kaggle(staged, tmp_path / "second", inputs, **parameters)
    assert f"Continues {output / 'runs' / 'kaggle'}" in printed
    folder = tmp_path / "second" / "runs" / "kaggle"
    assert json.loads((folder / "run.json").read_text())["finished"] is True
    history = (folder / "history.csv").read_text()
    assert history.count("affectnet") == 2
    assert history.count("fer2013") == 2
