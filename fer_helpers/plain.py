"""What JSON has: values that may stand in a file of results, and how two sets of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fer_helpers.files import RunError


def plain_values(value: Any, where: str) -> Any:
    """Turn numpy values, tuples and paths into what JSON has: dicts, lists, numbers, text, None.

    Args:
        value: What is to be written, nested as it may be.
        where: Its name, for the sentence.

    Raises:
        RunError: A value is NaN, infinite or none of these; the sentence says where it stands.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain_values(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"{where} is {value}, which no result may be; find out where it comes from.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RunError(f"{where} is a {type(value).__name__}; keep numbers, text, lists, dicts only.")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs, sorted: `"seed was 42 and is 43"`; a dict within is compared by entry."""
    there, here = _flat(before), _flat(now)

    def shown(side: Mapping[str, Any], name: str) -> str:
        return json.dumps(side[name]) if name in side else "not there"

    return [
        f"{name} was {shown(there, name)} and is {shown(here, name)}"
        for name in sorted(there.keys() | here.keys())
        if shown(there, name) != shown(here, name)
    ]


def _flat(entries: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in entries.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{before}{name} "))
        else:
            flat[f"{before}{name}"] = value
    return flat
