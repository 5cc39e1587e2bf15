"""Finds files attached to a Kaggle session; whole datasets are found by `layouts.find_dataset`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fer_helpers.layouts import SPLIT_OF

KAGGLE_INPUT = Path("/kaggle/input")


def attached_files(name: str) -> Iterator[Path]:
    """The files attached to this Kaggle session whose whole name matches a regular expression.

    Kaggle mounts a dataset at `<slug>` or `datasets/<owner>/<slug>` and a notebook's output at
    `<slug>` or `notebooks/<owner>/<slug>`, so every depth is looked at, in the order of the names.
    Off Kaggle there is nothing to find.
    """
    wanted = re.compile(name)
    for folder, folders, files in os.walk(KAGGLE_INPUT):
        # Splits hold pictures and nothing else, and listing them takes minutes on these mounts; a
        # run may have such a name, too.
        # Hidden ones are nobody's: of a copy that was broken off, say.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and (
                name.lower() not in SPLIT_OF
                or os.path.exists(os.path.join(folder, name, "run.json"))
            )
        )
        yield from (Path(folder, file) for file in sorted(files) if wanted.fullmatch(file))
