"""Does it pay? One change at a time, over seeds, scored on a slice of train nobody learns from.

    python benchmarks/ablation.py --data data                        # every arm; continues
    python benchmarks/ablation.py --data data --arms base "no attention"
    python benchmarks/ablation.py --table                            # what is finished so far

Every run is the network of `params/cpu.yaml` made smaller (see BUDGET), trained on FER2013's train
folder without the 3,000 images of docs/results/fer2013-selection-slice.txt and scored on those by
the last weights of a schedule of fixed length. Nothing is chosen on them, and no test image is
scored. Seeds are the outer loop, so that what is left unfinished is a seed rather than an arm. A
run that is killed continues to the bit; a finished one is one JSON file in the folder `--out`.

The table gives for each arm the mean accuracy over its seeds, and against the base the mean
difference on the same images and seeds with its 95 % interval (over seeds and images, see
`paired`), and McNemar's p for each seed.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import yaml
from scipy import stats

from fer_helpers.augment import Augment
from fer_helpers.checkpoints import CheckpointError
from fer_helpers.config import Config, ConfigError
from fer_helpers.data import load_affectnet, load_fer2013
from fer_helpers.data_check import clean_train
from fer_helpers.evaluation import mcnemar, p_text, seeds_summary
from fer_helpers.ferplus import read_ferplus_votes, vote_shares
from fer_helpers.files import FolderInUseError, replace_file
from fer_helpers.inference import DeviceError, pick_device, pick_precision, predict_logits
from fer_helpers.layouts import DataError
from fer_helpers.models import build_model, swap_head
from fer_helpers.phases import TrainingError
from fer_helpers.preprocess import Preprocess
from fer_helpers.splits import SelectionSet, Splits, TrainSet, slice_positions
from fer_helpers.training import train_phase
from fer_helpers.versions import code_version

ROOT = Path(__file__).parents[1]

SLICE = ROOT / "docs" / "results" / "fer2013-selection-slice.txt"

BUDGET = {"width": 16, "fer_epochs": 6, "affectnet_epochs": 4}
"""What is smaller than in params/cpu.yaml: six minutes a run on two idle cores without bf16."""

BASE = "base"
ARMS = {
    BASE: {},
    "no attention": {"attention": "none"},
    "longer": {"fer_epochs": 9},
    "phase 1 first": {"phases": "both"},
    "cleaned": {"drop_conflicts": True, "drop_blanks": True},
    "SE": {"attention": "se"},
    "CBAM": {"attention": "cbam"},
    "FER+ votes": {"ferplus_weight": 0.5},
}
"""What an arm changes. The base is FER2013 alone, with spatial attention after the last stage. Its
`longer` costs what `phase 1 first` costs, which has to beat it. The slice keeps twins together, so
that no arm can learn copies of it."""


def settings(arm: str, seed: int, votes: Path) -> Config:
    """The parameters of one run; `votes` are for the arm that learns them."""
    recipe = Config.from_yaml(ROOT / "params" / "cpu.yaml")
    change = {"phases": "fer2013", **BUDGET, **ARMS[arm], "seed": seed}
    if "ferplus_weight" in change:
        change["ferplus_votes"] = str(votes)
    return recipe.changed(**change)


UNREAD = {
    "fer_train_dir", "fer_test_dir", "extra_test_dirs", "output_dir", "run_name",
    "resume", "cache_dir", "phases", "max_images", "selection_size", "near_twins", "device",
    "bootstrap", "robustness", "embedding", "min_confidence", "photo", "gdown_id", "helpers_url",
    "tensorboard", "carry_head",
}  # fmt: skip
"""Parameters of the notebook that these programs do not look at."""

REFUSALS = (CheckpointError, FolderInUseError, TrainingError)
"""What stops a training with a sentence."""


def named_values(texts: Sequence[str], unread: Iterable[str] = ()) -> dict[str, object]:
    """Parameters as `--set` takes them: `["MIXUP=0.2"]` is `{"mixup": 0.2}`.

    Args:
        texts: the arguments.
        unread: names that change nothing in the calling program, beside `UNREAD`.

    Raises:
        SystemExit: one of them is given: a score must not look as if it came from it.
    """
    pairs = (text.partition("=") for text in texts)
    values = {name.lower(): yaml.safe_load(value) for name, _, value in pairs}
    idle = {name for name in values if name in UNREAD or name.startswith("affectnet_")}
    if idle := sorted(idle | (values.keys() & set(unread))):
        raise SystemExit(f"--set {', '.join(idle).upper()} changes nothing here: leave it out.")
    return values


def votes_of(config: Config, faces: TrainSet) -> np.ndarray | None:
    """Shares of the FER+ votes (N, 8) where the recipe learns them, else None.

    Raises:
        SystemExit: there are votes and no weight: a score must not look as if they were learned.
    """
    if not config.ferplus_weight:
        if config.ferplus_votes:
            raise SystemExit("FERPLUS_VOTES without FERPLUS_WEIGHT changes nothing: set both.")
        return None
    return vote_shares(read_ferplus_votes(config.ferplus_votes, faces))


def cut_slice(splits: Splits, size: int = 3000) -> Splits:
    """FER2013 with listed images of train to choose on, whatever its test folder holds.

    Less than all 3,000, twins together, is for a frozen recipe that chooses a temperature only:
    the others join train. With 0 nothing is held out.
    """
    if not size:
        return replace(splits, selection=None)
    train = splits.train
    names = SLICE.read_text(encoding="utf-8").split()
    listed = np.isin(train.files, names)
    if listed.sum() != len(names):
        raise SystemExit(f"{train.dataset} in --data lacks images that {SLICE.name} names.")
    held = np.flatnonzero(listed)
    held = held[slice_positions(train.take(held), size, purpose="calibration")]
    selection = train.take(held, SelectionSet, split="selection")
    return replace(splits, train=train.take(np.delete(np.arange(len(train)), held)),
                   selection=selection)  # fmt: skip


def read_fer(data: Path, config: Config, hold_out: int = 3000) -> Splits:
    """FER2013 below `data` as a recipe reads it, with that much of the slice held out.

    Raises:
        SystemExit: the recipe takes a part of the images only, so that some of the slice may lack.
    """
    if config.max_images:
        raise SystemExit("MAX_IMAGES is for quick tries of the notebook: set it to 0 here.")
    train, test = (data / "fer2013" / split for split in ("train", "test"))
    reading = {"max_bad_share": config.max_bad_share, "size": config.image_size}
    fer = cut_slice(load_fer2013(train, test, selection_size=0, **reading), hold_out)
    drops = ("drop_test_twins", "drop_conflicts", "drop_blanks")
    return clean_train(fer, **{name: getattr(config, name) for name in drops})


def run_program(main: Callable[[], None]) -> None:
    """Run a program; where what it was given cannot be used, it ends with a sentence."""
    try:
        main()
    except (ConfigError, DataError, DeviceError, *REFUSALS) as error:
        raise SystemExit(str(error)) from None


def stop(error: Exception) -> NoReturn:
    """End with a training's own sentence, whose ways out are the notebook's."""
    raise SystemExit(f"{error} (Here a new run is another folder for --out.)")


def public_only(splits: Splits, data: Path) -> Splits:
    """FER2013 with PublicTest as its one test set, which decides nothing here: without its stamp.

    With both halves of the test folder there, PrivateTest is the headline; it is kept for the
    notebook's run.

    Raises:
        SystemExit: the test folder has no image of that half.
    """
    public = [replace(test, stamp="") for test in splits.tests if test.split == "PublicTest"]
    if not public:
        raise SystemExit(
            f"No PublicTest image in {data / 'fer2013' / 'test'}: add that half of FER2013's test "
            "images, the only one that is scored here."
        )
    return replace(splits, tests=tuple(public))


def train(arm: str, seed: int, data: Path, votes: Path, folder: Path, where: dict) -> dict:
    """Train one run to its end, or continue it; returns what the table needs."""
    config = settings(arm, seed, votes)
    fer = read_fer(data, config)
    phases = {"fer2013": fer}
    if config.phases == "both":
        first = load_affectnet(
            data / "affectnet", grey=True, selection_size=1000,
            max_bad_share=config.max_bad_share, size=config.image_size,
        )  # fmt: skip
        phases = {"affectnet": first, **phases}
    preprocess = Preprocess(size=config.image_size, channels=config.input_channels, grey=True)
    shares = {"fer2013": votes_of(config, phases["fer2013"].train)}
    torch.manual_seed(seed)
    model, classes, minutes = None, (), 0.0
    for phase, splits in phases.items():
        names = splits.train.class_names
        if model is None:
            model = build_model(len(names), **config.model_kwargs())
        else:
            generator = torch.Generator().manual_seed(seed)
            model = swap_head(model, classes, names, carry=config.carry_head, generator=generator)
        classes = names
        result = train_phase(
            model, splits.train, splits.selection, config.recipe(phase), folder / phase,
            name=f"{arm}, seed {seed}, {phase}", preprocess=preprocess, seed=seed,
            augment=Augment(**config.augment_kwargs(phase)), votes=shares.get(phase),
            **where,
        )  # fmt: skip
        if result.stopped:
            raise KeyboardInterrupt
        minutes += sum(row["seconds"] for row in result.history) / 60
    logits = predict_logits(model, fer.selection, preprocess, **where)
    return {
        "arm": arm,
        "seed": seed,
        "right": (logits.argmax(1) == fer.selection.labels).astype(int).tolist(),
        "minutes": minutes,
        "commit": code_version(),
        "where": f"{where['device']}, {where['precision']}, {torch.get_num_threads()} threads",
        "recipe": config.fingerprint() | {"PRECISION": where["precision"]},
    }


def _reach(gains: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean of gains (seeds S > 1, images N > 1)."""
    by_seed, by_image = gains.mean(1, keepdims=True), gains.mean(0)
    count, images = gains.shape
    seed, image = by_seed.var(ddof=1) / count, by_image.var(ddof=1) / images
    rest = gains - by_image - by_seed + gains.mean()
    both = (rest**2).sum() / ((count - 1) * (images - 1)) / gains.size
    # Taken off, the residual may leave less than one of the parts, which is then the safer answer.
    total = max(seed + image - both, seed, image)
    spread = seed**2 / (count - 1) + image**2 / (images - 1)
    freedom = total**2 / spread if spread else count - 1
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(total))


def paired(base: Sequence[dict], arm: Sequence[dict]) -> dict:
    """Arm minus base over the seeds that both have.

    Seeds and images vary both: two crossed random effects. The variance of the mean of seeds and
    that of the mean of images both hold the residual variance, which is therefore taken off once.
    The interval is Student's t, with Satterthwaite's degrees of freedom: few where the seeds
    matter, many where the images do. Sources: Satterthwaite 1946, "An approximate distribution of
    estimates of variance components"; Searle, Casella and McCulloch 1992, "Variance Components",
    chapter 4 (two-way crossed classification).

    Returns:
        seeds, difference (mean, points of accuracy in 0..1), interval [low, high] (95 %; None with
        one seed), p_values (McNemar's) by seed.
    """
    by_seed = {run["seed"]: np.array(run["right"], bool) for run in base}
    pairs = {run["seed"]: np.array(run["right"], bool) for run in arm if run["seed"] in by_seed}
    seeds = sorted(pairs)
    gains = np.stack([pairs[s].astype(float) - by_seed[s] for s in seeds])
    difference, interval = float(gains.mean()), None
    if len(seeds) > 1:
        reach = _reach(gains)
        interval = [difference - reach, difference + reach]
    return {
        "seeds": seeds,
        "difference": difference,
        "interval": interval,
        "p_values": [mcnemar(pairs[s], by_seed[s])["p_value"] for s in seeds],
    }


def table(runs: Sequence[dict], arms: Sequence[str], seeds: Sequence[int]) -> str:
    """The finished runs of the base and of `arms` as Markdown, the unfinished `arms` below."""
    by_arm = {arm: sorted((r for r in runs if r["arm"] == arm), key=lambda r: r["seed"])
              for arm in dict.fromkeys([BASE, *arms])}  # fmt: skip
    lines = [
        "| arm | seeds | accuracy on the slice, % (sd) | minutes a run | against the base, points "
        "(95 %) | McNemar's p by seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in by_arm.items():
        if not found:
            continue
        scores = seeds_summary([100 * np.mean(run["right"]) for run in found])
        spread = "" if scores["sd"] is None else f" ({scores['sd']:.2f})"
        against, p_values = "", ""
        shared = {run["seed"] for run in by_arm.get(BASE, ())} & {run["seed"] for run in found}
        if arm != BASE and shared:
            result = paired(by_arm[BASE], found)
            against = f"{100 * result['difference']:+.2f}"
            if result["interval"]:
                against += " ({:+.2f} to {:+.2f})".format(*(100 * x for x in result["interval"]))
            p_values = ", ".join(map(p_text, result["p_values"]))
        lines.append(
            f"| {arm} | {', '.join(str(run['seed']) for run in found)} | {scores['mean']:.2f}"
            f"{spread} | {np.mean([run['minutes'] for run in found]):.1f} | {against} "
            f"| {p_values} |"
        )
    done = {(run["arm"], run["seed"]) for run in runs}
    missing = [f"{arm} (seed {seed})" for arm in arms for seed in seeds if (arm, seed) not in done]
    shown = [run for found in by_arm.values() for run in found]
    places = sorted({f"{run['where']}, commit {run['commit'][:12]}" for run in shown})
    lines.append("\nTrained on: " + ("; ".join(places) or "nothing yet") + ".")
    lines.append("Unfinished: " + (", ".join(missing) or "nothing") + ".")
    return "\n".join(lines)


def finished(folder: Path) -> list[dict]:
    """What the finished runs below a folder left."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--votes", type=Path, default=ROOT / "data" / "ferplus.csv",
        help="FER+ votes by file name, as fer_helpers.ferplus.match_ferplus makes them",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to torch")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    options = parser.parse_args()
    device = pick_device(options.device)
    where = {"device": device, "precision": pick_precision("auto", device)}
    # A base of yesterday's params/cpu.yaml, or in another precision, says nothing about an arm.
    precision = {"PRECISION": where["precision"]}
    earlier = [] if options.table else finished(options.out)
    old = [
        f"{run['arm']} (seed {run['seed']})"
        for run in earlier
        if run["arm"] in (BASE, *options.arms)  # the others are in no table of this call
        and run.get("recipe")
        != settings(run["arm"], run["seed"], options.votes).fingerprint() | precision
    ]
    if old:
        parser.error(f"{options.out} holds runs of another recipe or precision: {', '.join(old)}; "
                     "choose another --out")  # fmt: skip
    needed = {"FER+ votes": options.votes, "phase 1 first": options.data / "affectnet"}
    for arm, path in {} if options.table else needed.items():
        if arm in options.arms and not path.exists():  # not after an hour of the other arms
            parser.error(f"{arm} needs {path}, which is not there; --arms takes the others")
    if options.threads:
        torch.set_num_threads(options.threads)
    for seed in () if options.table else options.seeds:
        for arm in options.arms:
            folder = options.out / f"{arm}-{seed}".replace(" ", "-")
            if not (folder / "result.json").exists():
                try:
                    run = train(arm, seed, options.data, options.votes, folder, where)
                except REFUSALS as error:
                    stop(error)
                text = json.dumps(run)
                replace_file(folder / "result.json", partial(Path.write_text, data=text))
    runs = finished(options.out)
    print(table(runs, options.arms, options.seeds))


if __name__ == "__main__":
    run_program(main)
