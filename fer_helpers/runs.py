# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One run, one folder
#
# A number without its circumstances is a rumor. So everything that one training run leaves behind
# stands in one folder, and every score in it says which split it was taken on, how many pictures
# that were, what the epoch was chosen on, which files were read (by their content) and which code
# did it:
#
# | file | what it holds |
# |---|---|
# | `params.yaml` | every parameter, resolved; papermill takes it back with `-f` |
# | `run.json` | what decides whether the run may be continued, and whether it is finished |
# | `history.csv` | one line per epoch |
# | `metrics.json` | the scores and their stamps; no clock, so two equal runs give equal bytes |
# | `timing.json` | what the clock said, kept apart |
# | `predictions.csv` | one line per picture and split: truth, prediction, every probability |
# | `figures/` | each figure as PNG and SVG |
# | `model.safetensors` | the trained model, with its classes, preprocessing and temperature |
# | `affectnet/`, `fer2013/` | the state that a phase continues from, and its kept weights |
# | `MODEL_CARD.md` | the story of the run, written from the files above and from nothing else |
#
# A folder is never overwritten and never deleted: it is continued, or moved aside. `records` writes
# what stands in it.

# %%
"""The run folder: which one a run writes to, and whether an earlier one is continued."""

import contextlib
import errno
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from fer_helpers.files import (
    IN_USE,
    RunError,
    explained,
    in_use,
    probe,
    remove_partials,
    rename,
    write_file,
)
from fer_helpers.layouts import is_hidden, local_path
from fer_helpers.mounts import attached_files
from fer_helpers.plain import differences, plain_values
from fer_helpers.versions import code_version

STATE = "run.json"


# %% [markdown]
# ## The folder of this run
#
# Whether a folder may be continued is decided by its *fingerprint*: the parameters that change the
# result. Paths, time budgets and the device are not part of it, so a run may move to another
# machine and go on there, in the precision it was begun in; that the data and the weights it
# started from are the same is looked at when training continues. Random weights are the same on
# processors of one kind only: a run without pretrained weights does not move between x86 and ARM (a
# Mac with Apple silicon, say).
#
# On Kaggle an unfinished run of the same fingerprint among the attached inputs, the output of an
# earlier session, is copied and continued, unless the run that stands here has already trained.


# %%
@dataclass(frozen=True)
class Run:
    """An open run folder.

    `origin` is `"drawn"` or `"real"`; `resumed` says that files of an earlier session stand in the
    folder; `sentence` says what was decided and why.
    """

    folder: Path
    origin: str
    resumed: bool
    sentence: str

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def expect(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse to go on with other parameters than those that this run was opened with.

        Args:
            fingerprint: as `open_run` takes it.

        Raises:
            RunError: They differ, as after a change in a notebook that was not run from the start.
        """
        stored = _read_state(self.folder)["fingerprint"]
        if found := differences(stored, _plain(fingerprint, self.origin)):
            raise RunError(
                f"Parameters have changed since {self.folder} was opened ({'; '.join(found)}): "
                "choose a new RUN_NAME, and run all cells from the start."
            )

    def begin(self, parameters: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Take over an earlier run, now that everything its parameters name has been read.

        Until then a finished run stays as it is: a misspelled path or other data cost it nothing.

        Args:
            parameters: every parameter, for `params.yaml`.
            data: what is learned and chosen on, of each dataset: name -> JSON-able values.

        Raises:
            RunError: the run has trained on other data.
        """
        state = _read_state(self.folder)
        found = differences(state.get("data", data), data)
        if found and _trained(self.folder):
            raise RunError(
                f"{self.folder} was trained on other data ({'; '.join(found)}): choose a new "
                "RUN_NAME, or set RESUME to never, which moves the old folder aside, or give it "
                "those data back."
            )
        _write_parameters(self.folder, parameters)
        _write_state(self.folder, {**state, "data": data, "finished": False})

    def finish(self) -> None:
        """Mark the run as finished: `RESUME=auto` without a name starts a new one from now on."""
        _write_state(self.folder, {**_read_state(self.folder), "finished": True})


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} is not a run folder (its {STATE} is missing or broken); "
            "choose a new RUN_NAME, or set RESUME to never, which moves it aside."
        ) from error
    if not isinstance(state, dict) or not {"fingerprint", "finished", "created"} <= state.keys():
        raise RunError(
            f"{folder / STATE} does not describe a run; choose a new RUN_NAME, or set RESUME to "
            "never, which moves the folder aside."
        )
    return state


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    write_file(folder / STATE, json.dumps(state, indent=2, sort_keys=True) + "\n")


def _write_parameters(folder: Path, parameters: Mapping[str, Any]) -> None:
    values = {k.upper(): value for k, value in plain_values(parameters, "parameters").items()}
    write_file(folder / "params.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _plain(fingerprint: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """A fingerprint as JSON gives it back."""
    return json.loads(json.dumps({**fingerprint, "origin": origin}, default=str))


def _names(path: Path) -> Iterator[Path]:
    """`path`, `path-1`, `path-2` ... without end."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))


def _free(path: Path) -> Path:
    return next(name for name in _names(path) if not name.exists())


# %%
def open_run(
    output_dir: str | Path,
    run_name: str,
    config_dict: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    resume: str | Path = "auto",
    *,
    origin: str,
) -> Run:
    """Decide which folder this run writes to, and make sure, before any training, that it can.

    With `resume="auto"` a named folder of the same fingerprint is continued, and without a name the
    newest unfinished one is, those that have trained first; where there is none, a copy of the
    newest unfinished one among Kaggle's attached inputs is. A folder in which nothing was trained
    yet gives way to an attached run in which something was, and is begun again with other
    parameters. With `resume="never"` an existing named folder is moved aside to `name-1`, `name-2`
    ... With a path as `resume` that folder is continued; if it cannot be written it is copied to
    `output_dir` first. No run is overwritten or deleted.

    Args:
        output_dir: The folder of all runs; made if it does not exist.
        run_name: The name of the run's folder; empty for `fer-YYYYmmdd-HHMMSS`.
        config_dict: Every parameter, for `params.yaml`; that of a finished run waits for `begin`.
        fingerprint: What changes the result: parameter -> a JSON-able value.
        resume: `"auto"`, `"never"` or a run folder.
        origin: `"drawn"` or `"real"`: where the pictures of this run come from.

    Raises:
        RunError: The output folder cannot be written or is full, the named folder belongs to a run
            with other result-relevant parameters, or `resume` names no run folder.
    """
    if run_name != Path(run_name).name or run_name == "..":
        raise RunError(f"RUN_NAME {run_name!r} is not a plain folder name; leave out slashes.")
    output = local_path(output_dir)
    with explained("write to the output folder", output):
        output.mkdir(parents=True, exist_ok=True)
        remove_partials(output, minutes=10)
        probe(output)
    wanted = _plain(fingerprint, origin)

    named = output / run_name
    resume = str(resume)
    if resume not in {"auto", "never"}:
        folder = local_path(resume)
        if not (folder / STATE).exists():
            raise RunError(
                f"{folder} holds no {STATE}: RESUME wants the run's own folder, the one that "
                "holds it, such as runs/kaggle in an attached output, or 'auto' or 'never'."
            )
        run = _continue(folder, output, run_name, wanted, origin)
    elif not run_name or not named.exists() or _holds_no_run(named):
        run = _begin(output, run_name, wanted, origin, look=resume == "auto")
    elif resume == "never":
        aside = _move_aside(named)
        run = _start(named, wanted, origin, f"A new run; the earlier one now stands in {aside}.")
    elif _may_give_way(named, wanted):
        run = _begin(output, run_name, wanted, origin, look=True)
    else:
        run = _continue(named, output, run_name, wanted, origin)

    if not _read_state(run.folder)["finished"]:  # until `Run.begin`
        _write_parameters(run.folder, config_dict)
    return run


def _holds_no_run(folder: Path) -> bool:
    """Whether nothing but notebooks is in it: papermill wants its output's folder to exist."""
    return folder.is_dir() and all(
        item.suffix in {".ipynb", ".html"} or is_hidden(item.name)  # or a first write broken off
        for item in folder.iterdir()
    )


def _expect_nobody(folder: Path) -> None:
    """Refuse a run in which another process trains."""
    if in_use(folder):
        raise RunError(IN_USE.format(folder))


def _move_aside(folder: Path) -> Path:
    """Give a run another name, and return it."""
    _expect_nobody(folder)
    aside = _free(folder)
    with explained("move aside", folder):
        rename(folder, aside)
    return aside


def _trained(folder: Path) -> bool:
    """Whether training has begun, even without an epoch: its state is not given up unasked."""
    return any(folder.glob("*/last.pt")) or (folder / "metrics.json").exists()


def _may_give_way(folder: Path, fingerprint: dict) -> bool:
    """Whether a run broke off so early that one with other parameters, or attached, may be it."""
    state = _read_state(folder)
    same_faces = state["fingerprint"]["origin"] == fingerprint["origin"]
    return same_faces and not state["finished"] and not _trained(folder) and not in_use(folder)


def _now() -> str:
    return datetime.now().isoformat(timespec="microseconds")


def _begin(output: Path, run_name: str, fingerprint: dict, origin: str, *, look: bool) -> Run:
    """Start a new run, unless we may `look` for an unfinished one and it fits: here or attached.

    A run that has trained comes before one that broke off earlier: whoever started without the
    output of the last session, and then attached it, wants to go on with that.
    """
    timed = f"fer-{datetime.now():%Y%m%d-%H%M%S}"  # the clock decides nothing else
    folder = output / run_name if run_name else _free(output / timed)
    there = (folder / STATE).exists()  # and it may give way
    here, attached = [], []
    if look:
        # A hidden folder is a copy that was broken off.
        states = [folder / STATE] if run_name else output.glob(f"[!.]*/{STATE}")
        here = [run for run in _unfinished(states) if not in_use(run[0])]
        attached = _unfinished(attached_files(re.escape(STATE)))
    fitting = [run for run, state in here + attached if state["fingerprint"] == fingerprint]
    if fitting:
        run = max(fitting, key=_trained)  # of equals the first: here before attached, newest first
        copied = run not in [mine for mine, _ in here]
        if copied and there:
            _move_aside(folder)
        return _continue(run, output, run_name, fingerprint, origin, copied=copied)
    sentence = "A new run; the one that stood here never trained." if there else "A new run."
    if attached:
        other, state = attached[0]
        found = "; ".join(differences(state["fingerprint"], fingerprint))
        sentence = f"A new run: {other} is unfinished, but has other parameters ({found})."
    return _start(folder, fingerprint, origin, sentence)


def _start(folder: Path, fingerprint: dict, origin: str, sentence: str) -> Run:
    with explained("make", folder):
        folder.mkdir(exist_ok=True)
    state = {
        "created": _now(),
        "code": code_version(),
        "fingerprint": fingerprint,
        "finished": False,
        "origin": origin,
    }
    _write_state(folder, state)
    return Run(folder, origin, resumed=False, sentence=sentence)


def _unfinished(states: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The unfinished runs whose state files these are, the newest first."""
    found = []
    for folder in (path.parent for path in states):
        try:
            state = _read_state(folder)
        except RunError:
            continue  # a broken neighbor is no reason not to start
        if not state["finished"]:
            found.append((folder, state))

    def begun(run: tuple[Path, dict[str, Any]]) -> tuple[str, Path]:
        folder, state = run
        # A copy has come further than its original, whose date of creation it keeps.
        return str(state.get("copied", state["created"])), folder

    return sorted(found, key=begun, reverse=True)


def _continue(
    folder: Path,
    output: Path,
    run_name: str,
    fingerprint: dict,
    origin: str,
    *,
    copied: bool = False,
) -> Run:
    state = _read_state(folder)
    if found := differences(state["fingerprint"], fingerprint):
        raise RunError(
            f"{folder} was made with other parameters ({'; '.join(found)}); choose a new "
            "RUN_NAME, or set RESUME to never, which moves the old folder aside, or take those "
            "values back."
        )
    source = folder
    if copied or not _writable(folder):
        folder = _copy_of(source, output, run_name)
    _expect_nobody(folder)
    remove_partials(folder, minutes=10)
    sentence = f"Continues {source}" + (f", copied to {folder}." if folder != source else ".")
    if state.get("code") != code_version():
        sentence += f" It was begun by code {state.get('code')}, this is {code_version()}."
    return Run(folder, origin, resumed=True, sentence=sentence)


def _writable(folder: Path) -> bool:
    try:
        probe(folder)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            with explained("write to", folder):
                raise
        return False
    return True


def _copy_of(source: Path, output: Path, run_name: str) -> Path:
    """Copy a folder that cannot be written; an earlier copy of the same folder is used again."""
    origin = str(source.resolve())
    for target in _names(output / (run_name or source.name)):
        if not target.exists():
            break
        with contextlib.suppress(RunError):
            if _read_state(target).get("copied_from") == origin:
                return target
    partial = target.with_name(f".{target.name}.partial")
    with explained("copy the run to", target):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            # A copy carries the permissions of its original, and those forbid to write.
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            _write_state(partial, {**_read_state(partial), "copied_from": origin, "copied": _now()})
            rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


# %% [markdown]
# ## Demo
#
# Two starts of the same run and, once it has trained, one with another seed: the first two share a
# folder, the third is refused with the reason.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.runs import RunError, open_run
#
# scratch = tempfile.TemporaryDirectory()
# parameters = {"seed": 42, "batch_size": 32}
# first = open_run(scratch.name, "demo", parameters, {"seed": 42}, origin="drawn")
# again = open_run(scratch.name, "demo", parameters, {"seed": 42}, origin="drawn")
# print("same folder:", first.folder == again.folder, "| resumed:", again.resumed)
# (first.folder / "fer2013").mkdir()
# (first.folder / "fer2013" / "last.pt").touch()  # as if it had trained
# try:
#     open_run(scratch.name, "demo", parameters, {"seed": 43}, origin="drawn")
# except RunError as error:
#     print(str(error).replace(str(first.folder), "runs/demo"))
# scratch.cleanup()
