"""What a person sees of a phase that trains, and the one thing they may say: stop.

Lines of text and a progress bar for everybody, growing curves where a notebook is open, files for
TensorBoard where they are asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fer_helpers.config import Recipe
from fer_helpers.confusions import class_scores, top_confusions
from fer_helpers.front_end import front_end, watched

History = Sequence[Mapping[str, Any]]
"""The rows of `training.PhaseResult.history` so far."""


def epoch_line(row: Mapping[str, Any], recipe: Recipe) -> str:
    """One aligned line about an epoch."""
    text = (
        f"epoch {row['epoch']:3d}/{recipe.epochs} | train loss {row['train_loss']:.3f} "
        f"accuracy {row['train_accuracy']:.3f}"
    )
    if "selection_accuracy" in row:
        text += (
            f" | selection loss {row['selection_loss']:.3f} "
            f"accuracy {row['selection_accuracy']:.3f} macro-F1 {row['selection_macro_f1']:.3f}"
        )
    return text + f" | lr {row['lr']:.1e}"


def detailed_lines(confusion: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """Accuracy of each class and the three largest confusions above 10 %, as lines of text."""
    recall = class_scores(confusion)["recall"]
    lines = ["  ".join(f"{n} {100 * r:.1f} %" for n, r in zip(class_names, recall, strict=True))]
    for cell in top_confusions(confusion, class_names):
        share = f"{100 * cell['share']:.1f} % ({cell['count']})"
        lines.append(f"{cell['truth']} -> {cell['prediction']}: {share}")
    return lines


def epoch_bar(title: str, total: int, done: int) -> tqdm:
    """Faces per second and time left of an epoch, where somebody watches: not in a log.

    Args:
        title: what stands before the bar.
        total: faces in the epoch.
        done: faces that an earlier session has trained on.
    """
    return tqdm(
        total=total,
        initial=done,
        unit="img",
        desc=title,
        leave=False,
        mininterval=0.5,
        disable=not watched(),
    )


def watch_epochs(
    draw: Callable[[History], Any], events: Path | None = None
) -> Callable[[History], None]:
    """What `training.train_phase` may call after every epoch.

    Args:
        draw: gives a figure of a history, which is shown where the notebook is open, in one place.
        events: folder for TensorBoard; None writes nothing.
    """
    watchers = [live_figure(draw)] if front_end() else []
    if events is not None:
        watchers.append(event_writer(events))

    def on_epoch(history: History) -> None:
        for watcher in watchers:
            watcher(history)

    return on_epoch


def live_figure(draw: Callable[[History], Any]) -> Callable[[History], None]:
    """Show `draw(history)` the first time, and put the new figure in its place every other time."""
    from IPython.display import Image, display

    # Matplotlib is imported for a front end only: half a second of a resumed run's start.
    from fer_helpers.plot_style import png_bytes

    handles = []

    def on_epoch(history: History) -> None:
        picture = Image(png_bytes(draw(history)))  # a figure that shows itself takes no handle
        if handles:
            handles[0].update(picture)
        else:
            handles.append(display(picture, display_id=True))

    return on_epoch


def events_folder(folder: Path) -> Path | None:
    """`folder`, or None and a line of text where the package that writes into it is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        print("TENSORBOARD is on, but the package is not here: pip install tensorboard.")
        return None
    return folder


def event_writer(folder: Path) -> Callable[[History], None]:
    """Write histories into `folder` for TensorBoard, a curve for each column.

    The epochs of earlier sessions are written again, after a mark that makes TensorBoard forget
    what it has read: an epoch that was written but not saved would have two points otherwise.
    """
    from torch.utils.tensorboard import SummaryWriter

    writers = []

    def on_epoch(history: History) -> None:
        new = history[-1:]
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=1))
            new = history
        for row in new:
            for name, value in row.items():
                if name != "epoch":
                    writers[0].add_scalar(name, value, row["epoch"])
        writers[0].flush()

    return on_epoch


@contextlib.contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether somebody asked to stop.

    The stop button and Ctrl-C send the same signal. It is answered between two steps, where the
    state is whole; a second one stops at once.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def answer(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, answer)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
