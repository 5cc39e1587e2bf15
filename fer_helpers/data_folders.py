"""Settles what a run trains on before it starts: the folders that the parameters name, if there.

Where they are not, a run must not stop after an hour, and must not quietly take something else. A
folder that somebody named is an error that says what to do. Only where nobody named any, and this
is not Kaggle, the demo on drawn faces runs instead, and a banner says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from fer_helpers.config import DATA_FOLDERS, Config, ConfigError
from fer_helpers.layouts import (
    DataError,
    find_dataset,
    holds_class_folders,
    holds_split_folders,
    local_path,
    nearest_folder,
)

DEMO_FILE = Path(__file__).parents[1] / "params" / "demo.yaml"


def on_kaggle() -> bool:
    """Whether this runs on Kaggle, interactively or as a pushed kernel."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def settle_data(config: Config) -> tuple[Config, str]:
    """Decide what the run trains on when the folders are not where the parameters say.

    If all folders are still the defaults, none exists and we are not on Kaggle, the values of
    `params/demo.yaml` replace the defaults that nobody changed: the run is on drawn faces.

    Returns:
        the configuration to use and a banner (empty when nothing changed).

    Raises:
        ConfigError: a folder is missing, in one sentence with what to attach, set or run instead.
    """
    if config.drawn:
        return config, _banner("Drawn faces, as asked for: nothing here says anything about people")
    missing = [name for name in DATA_FOLDERS if not _is_there(name, getattr(config, name))]
    defaults = Config()
    untouched = all(getattr(config, n) == getattr(defaults, n) for n in DATA_FOLDERS)
    if untouched and len(missing) == len(DATA_FOLDERS) and not on_kaggle():
        return _demo(config, defaults)
    _refuse_missing(config, missing)
    return config, ""


def _is_there(name: str, path: str) -> bool:
    """Whether `data` will find this folder, in whichever form Kaggle mounts it."""
    if os.path.exists(local_path(path)):
        return True
    accepts = holds_split_folders if name == "affectnet_dir" else holds_class_folders
    try:
        find_dataset(path, name.upper(), accepts)
    except DataError:
        return False
    return True


def _demo(config: Config, defaults: Config) -> tuple[Config, str]:
    if not DEMO_FILE.exists():
        raise ConfigError(
            "No data at the default paths, and the drawn faces' parameters (params/demo.yaml) are "
            "not here either: set AFFECTNET_DIR, FER_TRAIN_DIR and FER_TEST_DIR, or set all three "
            "to 'drawn'."
        )
    demo = Config.from_yaml(DEMO_FILE)
    new = {
        name: getattr(demo, name)
        for name in Config.model_fields
        if getattr(config, name) == getattr(defaults, name) != getattr(demo, name)
    }
    if config.backbone != defaults.backbone:  # the demo's are a small ResNet's
        new = {name: value for name, value in new.items() if name not in ("stem", "width")}
    if config.start_size > new.get("image_size", config.image_size):
        new["start_size"] = 0
    lines = [f"{name.upper()}: {getattr(config, name)!r} -> {new[name]!r}" for name in sorted(new)]
    headline = "NO DATASET FOUND: this run is on DRAWN faces and says nothing about people"
    return config.changed(**new), _banner(headline, *lines)


def _banner(headline: str, *lines: str) -> str:
    bar = "=" * max(len(headline) + 4, 60)
    return "\n".join([bar, f"  {headline}", bar, *(f"  {line}" for line in lines)])


def _refuse_missing(config: Config, missing: list[str]) -> None:
    """Raise the one error that fits the folders that are not there."""
    needed = {
        "both": set(DATA_FOLDERS),
        "affectnet": {"affectnet_dir"},
        "fer2013": {"fer_train_dir", "fer_test_dir"},
    }[config.phases]
    missing = [name for name in missing if name in needed]
    if not missing:
        return
    places = " and ".join(f"{name.upper()} ({getattr(config, name)})" for name in missing)
    verb = "does" if len(missing) == 1 else "do"
    defaults = Config()
    if on_kaggle() and all(getattr(config, name) == getattr(defaults, name) for name in missing):
        wanted = []
        if "affectnet_dir" in missing:
            wanted.append("dollyprajapati182/balanced-affectnet")
        if {"fer_train_dir", "fer_test_dir"} & set(missing):
            wanted.append("msambare/fer2013")
        todo = f"attach {' and '.join(wanted)} with 'Add Input' at the right of the notebook"
        if set(missing) == needed:
            todo += ", or set all three folders to 'drawn'"
    else:
        nearest = "; ".join(
            f"{name.upper()}: {nearest_folder(local_path(getattr(config, name)).absolute())}"
            for name in missing
        )
        todo = f"{nearest}; set the parameter to where the data lies"
    if config.phases == "both" and missing == ["affectnet_dir"]:
        todo += ", or run the other phase alone with PHASES 'fer2013'"
    if config.phases == "both" and "affectnet_dir" not in missing:
        todo += ", or run the other phase alone with PHASES 'affectnet'"
    raise ConfigError(f"{places} {verb} not exist: {todo}.")
