"""Refuse notebooks whose stored outputs must not enter the repository.

Pictures of real faces never do. A notebook that stores pictures therefore says in its metadata
that they show drawn faces (`data_origin: drawn`) and carries their fingerprint, which
`notebooks/build.py` writes. Somebody who runs such a notebook on a real dataset and saves it
changes the pictures, the fingerprint no longer matches, and the commit is refused. Needs nothing
but Python: the pre-commit hook calls it by path.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1_500_000  # bytes of a committed notebook
EMBEDDED = re.compile(r"data:image/[^\"')\s]+|<svg.*?</svg>", re.DOTALL)


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def pictures(notebook: dict) -> Iterator[str]:
    """Every picture in a notebook, as its text: in outputs, attachments, HTML and sources."""
    for cell in notebook["cells"]:
        for bundle in cell.get("attachments", {}).values():
            yield from (
                joined(d) for kind, d in sorted(bundle.items()) if kind.startswith("image/")
            )
        yield from EMBEDDED.findall(joined(cell["source"]))
        for output in cell.get("outputs", []):
            for kind, data in sorted(output.get("data", {}).items()):  # as written to the file
                if kind.startswith("image/"):
                    yield joined(data)
                elif isinstance(data, str | list):
                    yield from EMBEDDED.findall(joined(data))


def fingerprint(notebook: dict) -> str:
    """SHA-256 over all pictures in order."""
    digest = hashlib.sha256()
    for picture in pictures(notebook):
        digest.update("".join(picture.split()).encode() + b"\n")
    return digest.hexdigest()


def problems(path: Path) -> list[str]:
    """What keeps this notebook out of the repository, one sentence each."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    metadata, found = notebook["metadata"], []
    if any(True for _ in pictures(notebook)):
        if metadata.get("data_origin") != "drawn":
            found.append("stores pictures but its metadata lack data_origin: drawn")
        elif metadata.get("pictures_sha256") != fingerprint(notebook):
            found.append("stores other pictures than `make notebooks` made from drawn faces")
    if metadata.get("widgets"):  # clearing outputs leaves what galleries have put there
        found.append("stores the state of widgets in its metadata, which may hold pictures")
    for number, cell in enumerate(notebook["cells"]):
        if any(output["output_type"] == "error" for output in cell.get("outputs", [])):
            found.append(f"stores an error in cell {number}")
    if path.stat().st_size > LARGEST:
        found.append(f"is {path.stat().st_size:,} bytes, more than {LARGEST:,}")
    return found


def main(paths: list[str]) -> int:
    bad = [(path, problem) for path in paths for problem in problems(Path(path))]
    for path, problem in bad:
        print(f"{path} {problem}; clear its outputs (and widgets), or run `make notebooks`.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
