"""Stage the notebook for Kaggle: one file that carries this package, and the metadata to push it.

    python -m fer_helpers.kaggle                # build/kaggle, ready for: kaggle kernels push
    python -m fer_helpers.kaggle --user NAME    # the same with your name, which pushing needs

Kaggle takes exactly one notebook, so the modules travel inside it, packed into one cell. Readable
`%%writefile` cells were weighed first: as JSON they are 1.3 times the size of the sources, which
passes the 500 KB that a staged notebook may have, and a reader on Kaggle would scroll through
thousands of lines before the first figure. Packed they are 0.4 times the size, exact to the byte
(`%%writefile` changes the end of a file), and become plain files in the working folder anyway.
"""

import argparse
import base64
import json
import lzma
import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from fer_helpers.config import Config, read_parameters
from fer_helpers.versions import code_version

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "Facial Emotion Recognition.ipynb"
TEMPLATE = "kaggle-kernel-metadata.json"
NOBODY = "YOUR_KAGGLE_USERNAME"
TAG = "embedded-module"

NOTE = """\
## The helper package

Kaggle takes one file, so `fer_helpers` travels in the next cell: {count} modules, packed. Running \
it writes them as plain files into `fer_helpers/` beside the results, where you can read and edit \
them. After an edit, restart the kernel and run everything below that cell.

Made by `make kaggle` from commit `{commit}`."""

UNPACK = '''\
import base64, importlib, json, lzma, os
from pathlib import Path

packed = """
{packed}
"""
modules = json.loads(lzma.decompress(base64.b64decode(packed)))
for name, text in modules.items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode())
importlib.invalidate_caches()
os.environ["FER_COMMIT"] = {commit!r}  # there is no git on Kaggle; the run's metrics name it
print(f"fer_helpers: {{len(modules)}} modules")
del packed, modules, name, text'''


class KaggleError(RuntimeError):
    """Staging is impossible; one sentence that says what is missing and what to do."""


def package_modules(package: Path) -> dict[str, str]:
    """The sources to embed: every `.py` file below `package`, by its path as imported, sorted.

    What Jupyter keeps in hidden folders (`.ipynb_checkpoints`) is none of them.
    """
    return {
        path.relative_to(package.parent).as_posix(): path.read_bytes().decode()
        for path in sorted(package.rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(package).parts)
    }


def embedding_cells(modules: Mapping[str, str], commit: str) -> list[NotebookNode]:
    """A note for the reader, and the cell that writes `modules` into the working folder."""
    raw = json.dumps(modules, sort_keys=True).encode()
    packed = base64.b64encode(lzma.compress(raw, preset=9)).decode()
    packed = "\n".join(packed[at : at + 120] for at in range(0, len(packed), 120))
    note = nbformat.v4.new_markdown_cell(
        NOTE.format(count=len(modules), commit=commit), id="embedded-note"
    )
    code = nbformat.v4.new_code_cell(
        UNPACK.format(packed=packed, commit=commit),
        id="embedded-modules",
        # Folded away in JupyterLab and on Kaggle: the workflow is what people come for.
        metadata={"tags": [TAG], "jupyter": {"source_hidden": True}, "_kg_hide-input": True},
    )
    return [note, code]


def staged_notebook(notebook: Path, parameters: Path, modules: Mapping[str, str]) -> NotebookNode:
    """The notebook without outputs, with `modules` embedded and what is special in `parameters`.

    Raises:
        KaggleError: the notebook is missing or has no cell tagged `parameters`.
        ConfigError: the parameter file is missing or wrong.
    """
    if not notebook.exists():
        raise KaggleError(f"{notebook} does not exist: run `make notebooks` first.")
    Config.from_yaml(parameters)  # better refused here than after an hour in Kaggle's queue
    staged = load_notebook_node(str(notebook))
    if not any("parameters" in cell.metadata.get("tags", []) for cell in staged.cells):
        raise KaggleError(f"{notebook} has no cell tagged parameters to put {parameters} after.")
    # Only what differs from the cell above: whoever edits that cell should not be overruled.
    defaults = Config().to_dict()
    given = read_parameters(parameters)
    special = {name: value for name, value in given.items() if value != defaults[name]}
    staged = parameterize_notebook(
        staged, special, comment=f"From {parameters.name}: these values override the cell above"
    )
    commit = code_version()
    for cell in staged.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"  # papermill's is random
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    staged.cells[1:1] = embedding_cells(modules, commit)
    staged.metadata = nbformat.from_dict(
        {
            "kernelspec": staged.metadata.kernelspec,
            "language_info": {"name": "python"},
            "commit": commit,
        }
    )
    nbformat.validate(staged)
    return staged


def kernel_metadata(template: Path, user: str) -> dict:
    """The push metadata of `template` with the owner set to `user`.

    Raises:
        KaggleError: `user` cannot be a Kaggle user name.
    """
    if not user or not all(c.isascii() and (c.isalnum() or c in "-_") for c in user):
        raise KaggleError(
            f"{user!r} is no Kaggle user name: give the name in your profile's address."
        )
    metadata = json.loads(template.read_text(encoding="utf-8"))
    metadata["id"] = f"{user}/{metadata['id'].split('/')[1]}"
    return metadata


def stage(
    out: str | Path = "build/kaggle",
    *,
    parameters: str | Path = ROOT / "params" / "kaggle.yaml",
    user: str | None = None,
    root: str | Path = ROOT,
) -> Path:
    """Write the notebook and `kernel-metadata.json` into `out`; equal inputs give equal bytes.

    Args:
        out: made when missing; the two files in it are replaced.
        parameters: the YAML file whose values the staged notebook starts with.
        user: owner of the Kaggle notebook; None takes `KAGGLE_USERNAME` of the environment, and
            without it leaves a placeholder (enough to import the file by hand).
        root: the checkout to stage.

    Returns:
        The staged notebook.

    Raises:
        KaggleError: something to stage is missing, or `user` is no user name.
        ConfigError: the parameter file is missing or wrong.
    """
    root, out = Path(root), Path(out)
    if not (root / TEMPLATE).is_file():
        raise KaggleError(
            f"{root} is no checkout of the repository ({TEMPLATE} is missing): clone it and stage "
            "from there."
        )
    user = user or os.environ.get("KAGGLE_USERNAME") or NOBODY
    metadata = kernel_metadata(root / TEMPLATE, user)
    modules = package_modules(root / "fer_helpers")
    notebook = staged_notebook(root / NOTEBOOK, Path(parameters), modules)
    out.mkdir(parents=True, exist_ok=True)
    target = out / metadata["code_file"]
    for path, text in (
        (target, nbformat.writes(notebook) + "\n"),
        (out / "kernel-metadata.json", json.dumps(metadata, indent=2) + "\n"),
    ):
        path.write_text(text, encoding="utf-8", newline="\n")
    return target


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_helpers.kaggle", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--user", help="your Kaggle user name (default: KAGGLE_USERNAME)")
    parser.add_argument("--parameters", default=ROOT / "params" / "kaggle.yaml", help="YAML file")
    parser.add_argument("--out", default="build/kaggle", help="folder to write (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        target = stage(chosen.out, parameters=chosen.parameters, user=chosen.user)
    except (KaggleError, ValueError) as error:  # ConfigError is a ValueError
        parser.exit(1, f"{error}\n")
    except OSError as error:
        parser.exit(1, f"--out {chosen.out} cannot be written ({error.strerror}): give a folder.\n")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB. Import it on Kaggle, or push it:")
    print(f"kaggle kernels push -p {chosen.out}")
    metadata = json.loads((target.parent / "kernel-metadata.json").read_text(encoding="utf-8"))
    if metadata["id"].startswith(NOBODY):
        print("No Kaggle user name found: give --user NAME before pushing.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
