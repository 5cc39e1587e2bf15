"""Rebuild the notebooks from their scripts, run them, and store their outputs.

    python notebooks/build.py                 # all
    python notebooks/build.py data models     # these

The scripts are the source: nothing is read back from a notebook, so file dates do not matter. Cell
ids come from the cells' text, so the same script gives the same notebook. Outputs show drawn faces
only; the pictures' fingerprint goes into the metadata, where tests/check_notebooks.py compares it.
"""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config, notebook_formats
from jupytext.paired_paths import paired_paths
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from check_notebooks import fingerprint, pictures


def is_paired(script: Path) -> bool:
    """Whether a script is written in cells (begins with the kernel's header)."""
    return script.read_text(encoding="utf-8").startswith("# ---\n")


def pairs() -> dict[Path, Path]:
    """Every paired script and its notebook, in the order of their names."""
    scripts = [*ROOT.glob("fer_helpers/*.py"), *ROOT.glob("notebooks/*.py")]
    return {script: partner(script) for script in sorted(scripts) if is_paired(script)}


def partner(script: Path) -> Path:
    config = load_jupytext_config(str(script))
    notebook = jupytext.read(script, fmt="py:percent", config=config)
    formats = notebook_formats(notebook, config, str(script))
    return next(
        Path(path)
        for path, _ in paired_paths(str(script), "py:percent", formats)
        if path.endswith(".ipynb")
    )


def from_script(script: Path) -> nbformat.NotebookNode:
    """The notebook that a script describes, without outputs, with fixed cell ids."""
    config = load_jupytext_config(str(script))
    notebook = jupytext.read(script, fmt="py:percent", config=config)
    # What jupytext itself keeps in a notebook; its version number would only make noise.
    filters = {
        "cell_metadata_filter": config.cell_metadata_filter,
        "notebook_metadata_filter": config.notebook_metadata_filter,
    }
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": filters,
            "kernelspec": notebook.metadata.kernelspec,
            "language_info": language,
        }
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        seen[cell.source] = seen.get(cell.source, 0) + 1
        cell.id = hashlib.sha256(f"{seen[cell.source]}\n{cell.source}".encode()).hexdigest()[:12]
    return notebook


def build(script: Path, target: Path) -> None:
    """Write `target` from `script` with the outputs of a fresh kernel in an empty folder."""
    notebook = from_script(script)
    kernel = notebook.metadata.kernelspec
    # An interrupted run must not leave a half-run notebook: write at the end only.
    with tempfile.TemporaryDirectory() as empty:  # as a new reader finds it, without earlier runs
        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name=kernel.name,
            record_timing=False,
            resources={"metadata": {"path": empty}},
        ).execute()
    notebook.metadata.kernelspec = kernel  # as the script has it, not as this machine calls it
    notebook.metadata.language_info = {
        key: notebook.metadata.language_info[key] for key in ("name", "file_extension", "mimetype")
    }
    if any(True for _ in pictures(notebook)):
        notebook.metadata["data_origin"] = "drawn"
        notebook.metadata["pictures_sha256"] = fingerprint(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, target)


def main(names: list[str]) -> None:
    if Path("/kaggle/input").exists():
        sys.exit("/kaggle/input exists, outputs could show real faces: build notebooks elsewhere.")
    os.environ["PYTHONPATH"] = str(ROOT)  # kernels start in an empty folder
    os.environ.pop("KAGGLE_KERNEL_RUN_TYPE", None)
    chosen = {
        script: target for script, target in pairs().items() if not names or script.stem in names
    }
    if not chosen:
        there = ", ".join(script.stem for script in pairs())
        sys.exit(f"No paired script is called {' or '.join(names)}; there are: {there}.")
    for script, target in chosen.items():
        begin = time.perf_counter()
        build(script, target)
        size, seconds = target.stat().st_size / 1000, time.perf_counter() - begin
        print(f"{target.relative_to(ROOT)}  {size:.0f} kB  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
