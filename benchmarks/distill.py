"""Teach one network by others: how the shipped model is made.

    python benchmarks/distill.py --data data --teachers a.safetensors b.safetensors
    python benchmarks/distill.py --teachers a.safetensors --start a.safetensors --out runs/longer
    python benchmarks/distill.py --live a.safetensors --set START_SIZE=0 --out runs/patient
    python benchmarks/distill.py ... --final student.safetensors

The student is the network of `params/cpu.yaml`, from scratch or from the weights of `--start`;
where IMAGE_SIZE is above the size those were trained at, faces grow to it for GROW_UNTIL of the
epochs. It learns FER2013's train folder without the 3,000 images of
docs/results/fer2013-selection-slice.txt, or, once a recipe is frozen, without the `--hold-out` of
them that its temperature is fitted on; teachers must not have learned these either. Its targets are
the label and what the teachers say about the same face (probabilities after their temperature, mean
over teachers and over ten views; Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network"). That takes the place of label smoothing. `--set FER_ERASE=0.5 MIXUP=0.2` changes
parameters of the file, FER+ votes among them. One teacher may be asked in every step instead,
about each face as the student sees it, augmented and mixed: `--live`, which sets its share of the
target first (`phases.Teacher`); it has to know IMAGE_SIZE from its own training. With `--voters`
the ten people who voted are one more teacher: what FER2013's label most likely is, given their
votes. The student sees pixels only, so it is taught by somebody who knows more than it can
(Lopez-Paz et al. 2016, "Unifying distillation and privileged information").

Killed, it continues to the bit with the same command. The table compares student and teachers on
the images held out. `--final`, for a frozen recipe, writes the student in half precision, with
temperature and balanced point fitted on them (where there are FER+ votes, on those of them that
make a set as doubtful as train), and scores that file once on PublicTest; numbers and figures of
that lie in `--out`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ablation import (
    REFUSALS,
    ROOT,
    named_values,
    public_only,
    read_fer,
    run_program,
    stop,
    votes_of,
)
from sklearn.linear_model import LogisticRegression

from fer_helpers.augment import Augment
from fer_helpers.calibration import fit_temperature
from fer_helpers.checkpoints import LoadedModel, load_model, save_model, weights_hash
from fer_helpers.config import Config
from fer_helpers.evaluation import compare, evaluate, p_text, reliability, softmax
from fer_helpers.files import replace_file
from fer_helpers.inference import pick_device, pick_precision, predict_logits
from fer_helpers.models import EmotionNet, build_model, describe
from fer_helpers.phases import Teacher
from fer_helpers.plot_analysis import plot_reliability
from fer_helpers.plot_style import savefig
from fer_helpers.plots import plot_confusion, plot_history
from fer_helpers.preprocess import Preprocess
from fer_helpers.protocol import Scored, balance, points_table, score_table, score_tests
from fer_helpers.splits import SelectionSet, Splits, TrainSet
from fer_helpers.training import PhaseResult, train_phase

VIEWS = 10
"""Of each face are shown to the teachers: together they are better than one, and are heard once."""


def say(teachers: Sequence[LoadedModel], faces: TrainSet, where: dict) -> np.ndarray:
    """What the teachers think of each face: probabilities (N, K), ten views, float32."""
    heard = 0
    for teacher in teachers:
        expect_classes(teacher, faces)
        logits = predict_logits(teacher.model, faces, teacher.preprocess, views=VIEWS, **where)
        heard = heard + softmax(logits / temperature_of(teacher))
    return (heard / len(teachers)).astype(np.float32)


def expect_classes(network: LoadedModel, faces: TrainSet) -> None:
    if network.class_names != faces.class_names:
        sys.exit(f"{network.path} knows {', '.join(network.class_names)}: not these classes.")


def temperature_of(teacher: LoadedModel) -> float:
    """What its logits are divided by: what was fitted for so many views, else for one."""
    return teacher.extra.get("temperatures", {}).get(str(VIEWS), teacher.temperature)


def with_voters(
    heard: np.ndarray, networks: int, votes: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Mean (N, K) of so many networks' answers and what votes (N, V) tell about labels (N,).

    Faces without votes keep what they had.
    """
    known = votes.sum(1) > 0
    told = told_by(votes[known], labels[known])(votes[known])
    heard = heard.copy()
    heard[known] = (networks * heard[known] + told) / (networks + 1)
    return heard


def told_by(votes: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What votes (N, V) tell about labels: a function of votes, which gives probabilities (N, K).

    A logistic regression on shares and their logarithms, fitted on the very faces that are taught:
    with so few weights it cannot know any of them by heart.
    """

    def seen(votes: np.ndarray) -> np.ndarray:
        return np.hstack([votes, np.log(votes + 0.05)])  # half a vote of ten where nobody chose

    fitted = LogisticRegression(max_iter=2000).fit(seen(votes), labels)
    return lambda votes: fitted.predict_proba(seen(votes))


def as_doubtful(
    held: SelectionSet, held_votes: np.ndarray, train: TrainSet, votes: np.ndarray
) -> SelectionSet:
    """The part of the faces held out whose labels are as doubtful as train's, by the votes on both.

    A thousand images are easier or harder than train by chance, and a temperature fitted on easier
    ones makes answers too sure. So each tenth of train, from the least likely label to the
    likeliest, gets its share of them (post-stratification), and the rest is left out.

    Raises:
        SystemExit: a tenth of train has nothing like it among the faces held out.
    """
    told = told_by(votes, train.labels)
    likely, here = (
        told(shares)[np.arange(len(shares)), labels]
        for shares, labels in ((votes, train.labels), (held_votes, held.labels))
    )
    edges = np.unique(np.quantile(likely, np.linspace(0, 1, 11)[1:-1]))
    tenth = np.digitize(here, edges)
    wanted = np.bincount(np.digitize(likely, edges), minlength=len(edges) + 1) / len(likely)
    counts = np.bincount(tenth, minlength=len(wanted))
    size = (counts[wanted > 0] / wanted[wanted > 0]).min()  # the largest with all shares right
    if not size:
        sys.exit("--hold-out is too small to be made as doubtful as train: hold out more.")
    order = np.random.default_rng(0).permutation(len(held))
    kept = [order[tenth[order] == k][: round(size * share)] for k, share in enumerate(wanted)]
    return held.take(np.sort(np.concatenate(kept)))


def mixed(labels: np.ndarray, heard: np.ndarray, share: float) -> np.ndarray:
    """Targets (N, K): so much of what was heard, the rest from the labels (shares of 1 each)."""
    return ((1 - share) * labels + share * heard).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--params", type=Path, default=ROOT / "params" / "cpu.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "distilled")
    parser.add_argument("--teachers", type=Path, nargs="+", default=[])
    parser.add_argument("--share", type=float, default=0.4, help="of the target that they set")
    parser.add_argument("--live", type=Path, help="a teacher who is asked in every step")
    parser.add_argument("--live-share", type=float, default=0.8, help="of the target that it sets")
    parser.add_argument("--voters", action="store_true", help="teach, too (FERPLUS_VOTES)")
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--lr", type=float, default=0.0, help="of all weights; 0 takes the file's")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters")
    parser.add_argument("--hold-out", type=int, default=3000, help="images of the slice")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--final", type=Path, help="score PublicTest and write the student")
    options = parser.parse_args()
    if options.hold_out < 1:
        parser.error("--hold-out: temperature and balanced point need at least one image")
    changes = {"phases": "fer2013", "label_smoothing": 0.0, "seed": options.seed}
    unread = {"compile", "time_budget_minutes", "tta_views"}
    if options.start:  # its file knows what it is
        unread |= {*Config().model_kwargs(), "input_channels", "start_size"}
    changes |= named_values(options.set, unread)
    if options.lr:
        changes |= dict.fromkeys(("fer_lr_backbone", "fer_lr_attention", "fer_lr_head"), options.lr)
    config = Config.from_yaml(options.params).changed(**changes)
    if not (options.teachers or options.voters or options.live):
        parser.error("nobody teaches: give --teachers, --voters or --live")
    if options.voters and not config.ferplus_weight:
        parser.error("--voters: set FERPLUS_WEIGHT and FERPLUS_VOTES, where the votes are")
    device = pick_device(options.device)
    start = options.start and load_model(options.start, device)
    if start:  # faces grow from the size that it knows; it is not sent back to smaller ones
        size = start.preprocess.size
        config = config.changed(start_size=size if size < config.image_size else 0)
    where = {"device": device, "precision": pick_precision(config.precision, device)}
    fer = read_fer(options.data, config, options.hold_out)
    if options.final:  # said now rather than after the training
        fer = public_only(fer, options.data)
    if start:
        expect_classes(start, fer.train)
    teachers = [load_model(path, device) for path in options.teachers]
    live = options.live and load_model(options.live, device)
    if live:
        expect_classes(live, fer.train)
        if config.start_size or live.preprocess.size != config.image_size:  # it would guess
            known = live.preprocess.size
            sys.exit(f"{live.path} knows faces of {known} px: set IMAGE_SIZE={known} and, without "
                     "--start or with one of that size, START_SIZE=0.")  # fmt: skip

    heads = [
        (weights_hash(t.model), t.model.architecture, t.preprocess.to_dict(), temperature_of(t))
        for t in teachers
    ]
    names = hashlib.sha256("\n".join(fer.train.files).encode()).hexdigest()
    known = [fer.train.content_hash, names, VIEWS, *heads]
    heard = options.out / f"heard-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.npy"
    if teachers and not heard.exists():  # takes minutes; a killed run should not wait for it again
        said = say(teachers, fer.train, where)
        options.out.mkdir(parents=True, exist_ok=True)
        replace_file(heard, partial(_save, array=said))
    labels = np.eye(len(fer.train.class_names), dtype=np.float32)[fer.train.labels]
    answers, votes = np.load(heard) if teachers else labels, votes_of(config, fer.train)
    calibrating = fer.selection
    if options.final and votes is not None:
        held_votes = votes_of(config, calibrating)
        calibrating = as_doubtful(calibrating, held_votes, fer.train, votes)
    if options.voters:
        answers = with_voters(answers, len(teachers), votes, fer.train.labels)
    targets = mixed(labels, answers, options.share)

    torch.manual_seed(config.seed)
    student = (
        start.model if start else build_model(len(fer.train.class_names), **config.model_kwargs())
    )
    print(f"{describe(student)} on {device} in {where['precision']}.", flush=True)
    channels = student.architecture["channels"]
    preprocess = Preprocess(size=config.image_size, channels=channels, grey=True)
    # It sees one view, so its temperature is that for one.
    teacher = live and Teacher(live.model, live.temperature, options.live_share)
    try:
        result = train_phase(
            student, fer.train, fer.selection, config.recipe("fer2013"), options.out,
            name="Student", preprocess=preprocess,
            augment=Augment(**config.augment_kwargs("fer2013")),
            seed=config.seed, votes=votes, soft_labels=targets, teacher=teacher,
            log=partial(print, flush=True), **where,
        )  # fmt: skip
    except KeyboardInterrupt:  # at the very end, after all was kept
        sys.exit("Stopped; the same command continues.")
    except REFUSALS as error:
        stop(error)
    if result.stopped:
        sys.exit("Stopped; the same command continues.")
    minutes = sum(row["seconds"] for row in result.history) / 60
    print(f"{minutes:.0f} minutes of training.")
    everybody = [*teachers, live] if live else teachers
    print(on_held_out(student, preprocess, everybody, fer.selection, where), flush=True)
    if options.final:
        fer = replace(fer, selection=calibrating)
        score, entries = finish(options.final, student, preprocess, fer, config.seed, where)
        write_scores(score, entries, options.out)
        draw_history(result, options.out / "figures")


def on_held_out(
    student: EmotionNet, preprocess: Preprocess, teachers: Sequence[LoadedModel],
    faces: SelectionSet, where: dict, name: str = "student",
) -> str:  # fmt: skip
    """A network, called `name`, and others on the images held out, one view: a Markdown table."""
    head = "| network | accuracy, % | macro-F1 | NLL at temperature 1 | after the best one here | "
    lines = [f"{head}{name} minus it, points (95 %) | p |", "|---|---|---|---|---|---|---|"]
    mine = predict_logits(student, faces, preprocess, **where)
    known = {name: mine} | {
        str(teacher.path): predict_logits(teacher.model, faces, teacher.preprocess, **where)
        for teacher in teachers
    }
    for name, logits in known.items():
        temperature = fit_temperature(logits, faces.labels)
        numbers = evaluate(
            logits, faces.labels, faces.class_names, temperature=temperature, bootstrap=0
        )
        row = f"| {name} | {100 * numbers['accuracy']:.2f} | {numbers['macro_f1']:.3f} "
        row += f"| {numbers['before_temperature']['nll']:.3f} | {numbers['nll']:.3f} |"
        if logits is not mine:
            pair = compare(*(said.argmax(1) == faces.labels for said in (mine, logits)))
            row += f" {100 * pair['difference']:+.2f} "
            if pair["interval"]:
                row += "({:+.2f} to {:+.2f}) ".format(*(100 * end for end in pair["interval"]))
            row += f"| {p_text(pair['p_value'])} |"
        lines.append(row if logits is not mine else row + " | |")
    return "\n".join(lines)


def finish(
    path: Path, student: EmotionNet, preprocess: Preprocess, fer: Splits, seed: int, where: dict
) -> tuple[Scored, list[dict]]:
    """Write the student in half precision and score what was written, once.

    Returns:
        the score of the test set, and every entry for `metrics.json`.
    """
    half = {n: v.half() if v.is_floating_point() else v for n, v in student.state_dict().items()}
    write = partial(save_model, path, student, fer.train.class_names, preprocess, state=half)
    extra = {
        "origin": fer.train.origin,
        "dataset": fer.train.dataset,
        "made_by": Path(sys.argv[0]).name,
    }
    write(extra=extra)
    written = load_model(path, where["device"]).model
    scores, temperature, chosen_on = score_tests(written, fer, preprocess, seed=seed, **where)
    balanced, shift = balance(scores[0], fer, chosen_on)
    extra |= {"balanced_shift": shift, "temperatures": scores[0].temperatures}
    write(temperature=temperature, extra=extra)
    print(score_table(scores).to_string(index=False))
    print(points_table(scores[0], balanced).to_string())
    numbers = scores[0].numbers
    low, high = (100 * end for end in numbers["ece_calibrated_range"])
    print(f"Temperature {temperature:.3f}: ECE {100 * numbers['ece']:.1f} %, "
          f"{low:.1f} to {high:.1f} % if perfectly calibrated.")  # fmt: skip
    return scores[0], [*scores[0].entries, *balanced.entries]


def write_scores(score: Scored, entries: list[dict], folder: Path) -> None:
    """Write `metrics.json`, confusion matrix and reliability diagram; nothing is scored again."""
    text = json.dumps({"results": entries}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "metrics.json", partial(Path.write_text, data=text))
    test, numbers = score.test, score.numbers
    note = f"{test.dataset} {test.split}, {len(test):,} faces, one view"
    temperatures = numbers["temperature"], 1.0
    seed = score.entries[0]["stamp"]["seed"]  # the calibrated range of the stored numbers
    curves = [reliability(softmax(score.logits, t), test.labels, seed=seed) for t in temperatures]
    confusion = np.array(numbers["confusion"])
    figures = folder / "figures"
    savefig(plot_confusion(confusion, test.class_names, note=note), figures, "confusion")
    savefig(plot_reliability(*curves, note=note), figures, "reliability")


def draw_history(result: PhaseResult, folder: Path) -> None:
    """Draw how the student learned."""
    history = plot_history(
        result.history, phase="Student", selection_name=result.selection_name,
        note="train accuracy on augmented faces, counted against the largest share of the target",
    )  # fmt: skip
    savefig(history, folder, "history")


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


if __name__ == "__main__":
    run_program(main)
