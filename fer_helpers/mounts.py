"""What is attached to a Kaggle session: the one place that knows where it is mounted."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")


def attached_files(name: str) -> Iterator[Path]:
    """The files attached to this Kaggle session whose whole name matches a regular expression.

    Kaggle mounts a dataset at `<slug>` or `datasets/<owner>/<slug>` and a notebook's output at
    `<slug>` or `notebooks/<owner>/<slug>`, so every depth is looked at, in the order of the names.
    Off Kaggle there is nothing to find.
    """
    wanted = re.compile(name)
    for folder, folders, files in os.walk(KAGGLE_INPUT):
        # Splits hold pictures and nothing else, and listing them takes minutes on these mounts.
        # Hidden ones are nobody's: of a copy that was broken off, say.
        passed = {"train", "val", "valid", "test"}
        folders[:] = sorted(f for f in folders if f not in passed and not f.startswith("."))
        yield from (Path(folder, file) for file in sorted(files) if wanted.fullmatch(file))
