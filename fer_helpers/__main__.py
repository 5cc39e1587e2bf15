"""Predict emotions from the shell: `python -m fer_helpers photo.jpg folder/ --csv out.csv`.

Exit codes: 0 every picture was read, 1 some were not (each is named), 2 nothing could be done or
the table could not be written, 130 stopped from the keyboard.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import glob
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
# A .zip would name its member after the temporary file, and .zst needs a package of its own.
NO_TABLES = {".zip", ".zst"}


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_helpers",
        description="Predict the emotion of every face in photos, folders of photos, or URLs.",
        epilog="Exit codes: 0 every picture was read, 1 some were not, 2 nothing could be done or "
        "the table could not be written, 130 stopped.",
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="file, folder or http(s) URL"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row per face")
    parser.add_argument(
        "--annotate", type=Path, metavar="FOLDER", help="write copies with boxes and labels"
    )
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="model file (.safetensors or .onnx) or run folder; "
        "default: the newest run on real faces below ./runs, else the shipped one",
    )
    parser.add_argument(
        "--crop",
        choices=("auto", "detect", "none"),
        default="auto",
        help="auto: pictures up to 112 pixels are face crops, faces are looked for in others; "
        "detect: always look; none: every picture is one face (default: %(default)s)",
    )
    parser.add_argument(
        "--balanced",
        action="store_true",
        help="read the model so that rare classes are found more often, at some accuracy",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="probability from 0 to 1 below which an answer is uncertain",
    )
    parser.add_argument(
        "--views", type=int, default=1, metavar="N", help="average 1 to 10 views of each face"
    )
    parser.add_argument("--detector", type=Path, metavar="FILE", help="YuNet's ONNX file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    # A name that the console's encoding does not have must not end the run.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")

    # Only now: torch takes seconds to import, and --help should not.
    from fer_helpers.checkpoints import CheckpointError
    from fer_helpers.detectors import DetectorError
    from fer_helpers.export import ExportError
    from fer_helpers.files import replace_file
    from fer_helpers.layouts import local_path
    from fer_helpers.prediction import PredictionError, load_classifier, predict_images
    from fer_helpers.sources import IMAGE_SUFFIXES

    annotate = options.annotate and local_path(options.annotate)
    csv = options.csv and local_path(options.csv)
    try:
        if csv is not None and csv.suffix.lower() in IMAGE_SUFFIXES | NO_TABLES:
            raise PredictionError(
                f"--csv {csv} is the name of a picture or an archive: give a name that ends in "
                ".csv or .csv.gz."
            )
        for folder in (annotate, csv and csv.parent):
            if folder is not None:  # said now, not after a thousand pictures
                folder.mkdir(parents=True, exist_ok=True)
        # Into a device or a pipe is written directly, and once: its reader ends with its writer.
        direct = csv is not None and csv.exists() and not (csv.is_file() or csv.is_dir())
        if csv is not None and not direct:
            csv = csv.resolve()  # what a link points to
            if csv.exists():  # a folder, open in another program, or not to be written
                csv.open("a").close()
            tempfile.TemporaryFile(dir=csv.parent).close()
        classifier = load_classifier(options.model, balanced=options.balanced)
        if options.model is None:
            print(f"Answers come from {classifier.path}.", file=sys.stderr)
        pictures = expanded(options.pictures) if os.name == "nt" else options.pictures
        table = predict_images(
            pictures,
            classifier,
            crop=options.crop,
            min_confidence=options.min_confidence,
            views=options.views,
            detector=options.detector,
            annotate_to=annotate,
        )
        try:
            say(table)  # before anything is written, which may fail
            sys.stdout.flush()
        except OSError as error:  # `| head` has seen enough; the table is still wanted
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # the second on Windows
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if csv is not None:
            # Names of files need not be text; what is not is written as \udc80 and the like.
            write = functools.partial(
                table.to_csv,
                index=False,
                float_format="%.6g",
                encoding="utf-8",
                errors="backslashreplace",
                compression=COMPRESSIONS.get(csv.suffix.lower()),
            )
            try:
                if direct:
                    write(csv)
                else:
                    replace_file(csv, write)
            except OSError as error:  # which would name a temporary file
                raise OSError(error.errno, error.strerror, str(csv)) from error
    except (CheckpointError, DetectorError, ExportError, PredictionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or csv or 'The output'} cannot be written ({error.strerror}).",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130

    unreadable = int(table["error"].sum())
    if unreadable:
        print(f"{unreadable} of the inputs could not be read.", file=sys.stderr)
    return 1 if unreadable else 0


def expanded(names: Sequence[str]) -> list[str]:
    """The files that names with wildcards mean, which the shells of Windows leave to the program.

    A name that is a file, or that nothing matches, stays as it is.
    """
    found = []
    for name in names:
        # Brackets are taken as they are: on Windows they belong to names, not to wildcards.
        pattern = name.replace("[", "[[]")
        files = [] if os.path.exists(name) else sorted(glob.glob(pattern))
        found += files or [name]
    return found


def say(table: pd.DataFrame) -> None:
    """Print a line for every row of `predict_images`."""
    for row in table.itertuples():
        if row.error:
            print(f"error: {row.note}", file=sys.stderr)
        else:
            print(f"{row.file}: {describe(row)}")


def describe(row: Any) -> str:
    """One line for a row of `predict_images`."""
    import pandas as pd

    if pd.isna(row.face):
        return row.note
    box = "" if pd.isna(row.left) else f" at ({row.left}, {row.top})"
    note = f" [{row.note}]" if row.note else ""
    return f"{row.label} {row.confidence:.1f} %{box}{', uncertain' * row.uncertain}{note}"


if __name__ == "__main__":
    sys.exit(main())
