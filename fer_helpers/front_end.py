"""Is somebody there to move a slider? Widgets for them, one figure for everybody else."""

import sys
from collections.abc import Callable
from typing import Any

from fer_helpers.extras import lacking


def front_end() -> bool:
    """Whether a person runs this cell from Jupyter, VS Code, Colab or Kaggle's editor.

    A front end sends its cells with `allow_stdin`, because it can ask its person something
    (https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute). papermill, nbconvert
    and nbval send False. Environment variables would not tell: a papermill that is started from a
    notebook or from an editor's terminal inherits theirs.
    """
    kernel = _kernel()
    request = kernel.get_parent("shell") if kernel is not None else {}
    return bool(request.get("content", {}).get("allow_stdin"))


def watched() -> bool:
    """Whether a progress bar has somebody who sees it: in a terminal or an open notebook."""
    return getattr(sys.stderr, "isatty", bool)() or front_end()  # pythonw has no stderr


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel (also a headless one, which keeps the figure)."""
    return _kernel() is not None


def _kernel() -> Any:
    """The Jupyter kernel that this process is, or None; IPython is not imported for the answer."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None)


def explore(draw: Callable[..., Any], **choices: Any) -> Any:
    """Show what `draw` draws; where a person can play, with widgets for its arguments.

    Args:
        draw: returns a figure, or None after printing why there is none. All its arguments have
            defaults: they are what is shown first, and all that is shown without a front end or
            without ipywidgets.
        **choices: a widget for some of the arguments, in the short form of `ipywidgets.interact`:
            a list for a menu, (low, high) or (low, high, step) for a slider, which draws when it is
            let go.

    Returns:
        What `draw()` returned, to be kept.
    """
    from IPython.display import display

    figure = draw()
    if front_end():
        try:
            from ipywidgets import interact
        except ImportError as error:
            print(f"No menus and sliders, as {lacking(error, 'ipywidgets', 'ipywidgets')}.")
        else:
            for control in interact(draw, **choices).widget.children:
                if hasattr(control, "continuous_update"):  # drawing may take a second
                    control.continuous_update = False
            return figure
    if figure is not None:
        display(figure)
    return figure
