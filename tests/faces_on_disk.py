"""Made-up faces in the folder layouts that the data tests read: noise, saved without loss.

And where real ones lie, on machines that have some.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_helpers.layouts import AFFECTNET_CLASSES, FER_FOLDERS


def shared(name):
    """A file or folder of the data that lies outside of the repository; without it, a skip.

    It is looked for in `FER_SHARED_DATA`, or else in `shared/data` beside any folder above.
    """
    above = [folder / "shared/data" for folder in Path(__file__).resolve().parents]
    given = os.environ.get("FER_SHARED_DATA")
    for folder in [Path(given)] if given else above:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"shared/data/{name} is not on this machine")


def picture(seed, size=(12, 12), grey=True):
    shape = size[::-1] if grey else (*size[::-1], 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_fer(root, train=10, public=2, private=2, folders=FER_FOLDERS, size=(12, 12)):
    """Grey noise in the Kaggle layout; PNG, so that the pixels read are the pixels written."""
    parts = (("Training", "train", train), ("PublicTest", "test", public))
    for s, (split, folder, count) in enumerate((*parts, ("PrivateTest", "test", private))):
        for k, name in enumerate(folders):
            for i in range(count):
                seed = s * 10_000 + k * 100 + i
                save(root / folder / name / f"{split}_{seed}.png", picture(seed, size))
    return root


def write_affectnet(root, splits=("train", "val"), per_class=8, folders=AFFECTNET_CLASSES):
    for s, split in enumerate(splits):
        for k, name in enumerate(folders):
            for i in range(per_class):
                seed = s * 1000 + k * 100 + i
                save(root / split / name / f"image{seed}.png", picture(seed, (10, 10), grey=False))
    return root
