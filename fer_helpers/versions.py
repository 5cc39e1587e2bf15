"""Which code, which packages and how many threads made a number."""

import hashlib
import itertools
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def threads() -> int:
    """How many threads torch computes with here: on a processor it changes the last digits.

    Sums are split among the threads, and floating-point addition is not associative.
    """
    import torch  # here, so that reading a run folder need not wait for it

    return torch.get_num_threads()


def code_version() -> str:
    """The commit of this code: from `FER_COMMIT`, else from git, else `"unknown"`.

    `FER_COMMIT` is for a copy that git does not know, and is taken at its word. Otherwise, where
    files of the code differ from the commit or nothing knows it, the code's own hash is added
    (`unknown+3f2a...`), so two runs of the same version are of the same code.
    """
    return os.environ.get("FER_COMMIT", "").strip() or _git_commit()


@cache
def _git_commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    code = ["*.py", "../notebooks/*.py", "../benchmarks/*.py"]
    try:
        # Installed below another project's repository, that project's commit would be the answer.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.SubprocessError):
        return f"unknown+{_code_hash()}"
    return f"{commit}+{_code_hash()}" if changed else commit


def _code_hash() -> str:
    here = Path(__file__).resolve().parent
    beside = (here.parent.glob(f"{name}/*.py") for name in ("notebooks", "benchmarks"))
    sources = sorted([*here.glob("*.py"), *itertools.chain(*beside)])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
