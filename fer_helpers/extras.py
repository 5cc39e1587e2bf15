"""What to say where an optional package cannot be imported."""

from __future__ import annotations


def lacking(error: ImportError, package: str, install: str) -> str:
    """Whether a package is missing or does not load, and what to do: a part of a sentence.

    One that is there may lack a library of the system or want another version of its neighbor. To
    install it would change nothing, so what it says itself is passed on.

    Args:
        error: what importing it raised.
        package: its name as imported, up to the first dot.
        install: what pip calls it, and what else is needed with it.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return f"{package} is missing: pip install {install}"
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{package} does not load ({said}): mend that, or pip install --force-reinstall {install}"
    )
