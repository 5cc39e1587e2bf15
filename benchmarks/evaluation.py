"""How long does the evaluation take that is not the network's: numbers, intervals, all figures?

    python benchmarks/evaluation.py                # 7,178 made-up answers, as many as FER2013 has
    python benchmarks/evaluation.py --n 1000 --threads 1

Labels have FER2013's class sizes; logits, pixels, features, attention maps and votes are made up.
The calls are the notebook's, in its order, from the scores to the model card: every figure is drawn
once as it stands there, written as PNG and SVG, and shown. Only forward passes are missing. Printed
are seconds on the clock and, where others use the machine too, the fairer seconds of the processor.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fer_helpers import evaluation, exploration, plots, protocol, records, runs
from fer_helpers.corruptions import fixed_sample, robustness
from fer_helpers.cross_dataset import cross_dataset, cross_dataset_table
from fer_helpers.layouts import FER_CLASSES
from fer_helpers.model_card import model_card
from fer_helpers.splits import SelectionSet, Splits, TestSet, TrainSet

SHARES = np.array([958, 111, 1024, 1774, 1233, 1247, 831]) / 7178  # of FER2013's test folder
SIDE = 48
TRAIN = 28_709

spent: dict[str, tuple[float, float]] = {}


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Add what a part takes: seconds on the clock, seconds of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    before = spent.get(part, (0.0, 0.0))
    spent[part] = (before[0] + time.perf_counter() - wall, before[1] + time.process_time() - cpu)


def made_up(kind: type, n: int, seed: int, **more):
    """`n` smooth random faces (48 px, grey) with FER2013's class shares."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (n, 12, 12, 1), np.uint8)
    fine = chance.integers(0, 40, (n, SIDE, SIDE, 1), np.uint8)
    pixels = (0.8 * coarse.repeat(4, 1).repeat(4, 2) + fine).astype(np.uint8)
    about = {"dataset": "made-up", "origin": "drawn", "content_hash": f"{seed:064d}"}
    return kind(
        pixels=pixels, rows=np.arange(n), labels=chance.choice(7, n, p=SHARES),
        class_names=FER_CLASSES, files=np.array([f"{seed}/{k}.png" for k in range(n)]),
        native=np.full(n, "L 48x48"), **about, **more,
    )  # fmt: skip


def answers(labels: np.ndarray, seed: int) -> np.ndarray:
    """Logits, float32 (N, 7), that are right about two times in three."""
    chance = np.random.default_rng(seed)
    return (2 * chance.normal(size=(len(labels), 7)) + 3 * np.eye(7)[labels]).astype(np.float32)


def scores(splits: Splits) -> tuple[list[protocol.Scored], float, dict]:
    """The section Evaluation: numbers, intervals, tables."""
    protocol.predict_logits = lambda model, faces, preprocess, *, views, **_: answers(
        faces.labels, len(faces) + views
    )
    with timed("numbers and 10,000 bootstrap draws, 3 sets, with leak-free twins"):
        scored, temperature, chosen_on = protocol.score_tests(None, splits, None, seed=0)
    numbers = scored[0].numbers
    with timed("the balanced point"):
        balanced, _ = protocol.balance(scored[0], splits, chosen_on)
        protocol.points_table(scored[0], balanced).to_html()
    with timed("tables and tests"):
        protocol.score_table(scored).to_html()
        evaluation.scores_text(numbers)
        confusion = np.array(numbers["confusion"])
        evaluation.report_text(confusion, FER_CLASSES)
        evaluation.chi_square_text(evaluation.chi_square(confusion, FER_CLASSES))
    metrics = {"results": [entry for score in scored for entry in score.entries]}
    return scored, temperature, metrics


class Explorer:
    """The figures of the sections Evaluation and Explore, each timed under its own name."""

    def __init__(self, run: runs.Run, scored: protocol.Scored, temperature: float) -> None:
        """Take what the notebook has at this place."""
        self.run, self.test, self.logits = run, scored.test, scored.logits
        self.confusion = np.array(scored.numbers["confusion"])
        self.per_class = scored.numbers["per_class"]
        self.probabilities = evaluation.softmax(scored.logits, temperature)
        self.predicted = self.probabilities.argmax(1)
        self.names = np.array(FER_CLASSES)
        self.chance = np.random.default_rng(0)
        self.note = {"note": f"made-up answers, {len(self.test):,} images"}

    def show(self, name: str, figure) -> None:
        """Write and show a figure, as the notebook does."""
        with timed("figures written as PNG and SVG, and shown"):
            records.save_figure(self.run, figure, name)
            plots.png_bytes(figure)

    def gallery(self, name: str, positions: np.ndarray) -> None:
        """Faces with truth, answer and confidence."""
        with timed("galleries"):
            figure = plots.plot_mistakes(
                self.test.images(positions), self.names[self.test.labels[positions]],
                self.names[self.predicted[positions]], self.probabilities[positions].max(1),
                **self.note,
            )  # fmt: skip
        self.show(name, figure)

    def per_class_figures(self) -> None:
        """What the section Evaluation draws."""
        with timed("confusion, accuracy and scores per class"):
            figures = {
                "confusion": plots.plot_confusion(self.confusion, FER_CLASSES, **self.note),
                "accuracy": plots.plot_class_accuracy(self.confusion, FER_CLASSES, **self.note),
                "scores": plots.plot_class_scores(self.per_class, **self.note),
            }
        for name, figure in figures.items():
            self.show(name, figure)

    def galleries(self) -> None:
        """Mistakes at random, the surest ones, one cell, one confidence."""
        labels, pick = self.test.labels, exploration.pick_faces
        for name, choice in {
            "mistakes": {},
            "surest": {"how": "confident"},
            "cell": {"truth": 2, "prediction": 5},
        }.items():
            with timed("galleries"):
                positions = pick(self.probabilities, labels, **choice)
            self.gallery(name, positions)
        self.gallery("confidence", np.argsort(np.abs(self.probabilities.max(1) - 0.5))[:12])

    def suspects(self) -> None:
        """Labels that people dispute."""
        votes = self.chance.multinomial(10, self.probabilities)
        given = (self.test.labels, votes, FER_CLASSES, FER_CLASSES)
        with timed("label suspects"):
            exploration.votes_text(exploration.vote_agreement(self.predicted, *given))
            found = exploration.label_suspects(self.probabilities, *given)
            images = self.test.images([suspect["position"] for suspect in found])
            figure = plots.plot_suspects(images, found, **self.note)
        self.show("suspects", figure)

    def maps(self) -> None:
        """Where the network looked."""
        for name, count in {"attention": 6, "looked-at": 3}.items():
            kinds = {"mask": self.chance.random((count, 7, 7)),
                     "Grad-CAM": self.chance.random((count, SIDE, SIDE))}  # fmt: skip
            with timed("attention and Grad-CAM, without their passes"):
                images = self.test.images(np.arange(count))
                figure = plots.plot_attention(images, kinds, FER_CLASSES[:count], **self.note)
            self.show(name, figure)

    def trust(self) -> None:
        """Calibration, silence, curves and tests."""
        labels = self.test.labels
        with timed("reliability"):
            before = evaluation.reliability(evaluation.softmax(self.logits), labels)
            after = evaluation.reliability(self.probabilities, labels)
            figure = plots.plot_reliability(after, before, **self.note)
        self.show("reliability", figure)
        with timed("risk and coverage"):
            chosen = evaluation.abstain_threshold(self.probabilities, labels, coverage=0.8)
            curve = evaluation.risk_coverage(self.probabilities, labels)
            figure = plots.plot_risk_coverage(curve, chosen, **self.note)
        self.show("risk-coverage", figure)
        with timed("precision and recall"):
            curves = exploration.precision_recall(self.probabilities, labels, FER_CLASSES)
            figure = plots.plot_precision_recall(curves, FER_CLASSES, **self.note)
        self.show("precision-recall", figure)
        with timed("residuals"):
            tested = evaluation.chi_square(self.confusion, FER_CLASSES)
            figure = plots.plot_residuals(tested, FER_CLASSES, **self.note)
        self.show("residuals", figure)

    def embedding(self, fixed: np.ndarray) -> None:
        """The t-SNE map, and two classes on it."""
        labels = self.test.labels[fixed]
        features = self.chance.normal(size=(len(fixed), 512)) + 3 * np.eye(512)[labels]
        with timed("t-SNE of 1,000 faces"):
            points = exploration.embedding_map(features)
        for name, highlight in {"embedding": (), "pair": FER_CLASSES[:2]}.items():
            with timed("embedding maps"):
                more = {"highlight": highlight, **self.note}
                figure = plots.plot_embedding(points, labels, FER_CLASSES, **more)
            self.show(name, figure)

    def spoiled(self, fixed: np.ndarray) -> dict[str, list[float]]:
        """Robustness: six corruptions at five severities."""
        images, labels = self.test.images(fixed), self.test.labels[fixed]
        logits = answers(labels, 1)
        with timed("spoiling 1,000 faces 30 times"):
            accuracies = robustness(lambda faces: logits, images, labels)
            figure = plots.plot_robustness(accuracies, **self.note)
        self.show("robustness", figure)
        return accuracies


def keep(run: runs.Run, scored: list[protocol.Scored], metrics: dict, temperature: float) -> None:
    """The files of the run."""
    with timed("predictions, metrics, model card"):
        for score in scored:
            test = score.test
            records.write_predictions(
                run, files=test.files, labels=test.labels, class_names=FER_CLASSES,
                probabilities=evaluation.softmax(score.logits, temperature), split=test.split,
                dataset=test.dataset, leak_free=test.leak_free,
            )  # fmt: skip
        records.write_metrics(run, metrics)
        model_card(run)


def evaluate(n: int, folder: str) -> None:
    train = made_up(TrainSet, TRAIN, 1, split="train")
    half, selected = n // 2, made_up(SelectionSet, n // 2, 3, split="PublicTest")
    tests = [
        made_up(TestSet, count, 2, split=name, leak_free=np.arange(count) % 12 > 0)
        for name, count in (("Public + Private", n), ("PrivateTest", half), ("PublicTest", half))
    ]
    splits = Splits(train, selected, tuple(tests), sentence="made up")
    run = runs.open_run(folder, "benchmark", {"seed": 0}, {}, origin="drawn")
    scored, temperature, metrics = scores(splits)
    stamp = scored[0].entries[0]["stamp"]

    explorer = Explorer(run, scored[0], temperature)
    explorer.per_class_figures()
    test = scored[0].test
    with timed("by sharpness and size"):
        parts = exploration.slices(explorer.predicted == test.labels, test.images(), test.native)
        exploration.slices_text(parts)
    explorer.galleries()
    explorer.suspects()
    explorer.maps()
    explorer.trust()
    fixed = fixed_sample(n)
    explorer.embedding(fixed)
    accuracies = explorer.spoiled(fixed)
    with timed("another dataset: seen?, numbers, table"):
        other = replace(test, dataset="another")  # else its name says already that it is seen
        about = {**stamp, "n": n, "dataset": "another"}
        row = cross_dataset(other, scored[0].logits, FER_CLASSES, [train, selected], about)
        cross_dataset_table([row]).to_html()
    metrics |= {
        "slices": {"stamp": stamp, "parts": parts}, "cross_dataset": [row],
        "robustness": {"stamp": stamp, "accuracy": accuracies},
    }  # fmt: skip
    keep(run, scored, metrics, temperature)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=7178, help="predictions")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads), tempfile.TemporaryDirectory() as folder:
        evaluate(options.n, folder)
    print(f"{options.n:,} predictions, {options.threads} threads\n")
    print("| part | seconds | CPU seconds |\n|---|---|---|")
    for part, (wall, cpu) in spent.items():
        print(f"| {part} | {wall:.1f} | {cpu:.1f} |")
    wall, cpu = (sum(column) for column in zip(*spent.values(), strict=True))
    print(f"| **all** | **{wall:.1f}** | **{cpu:.1f}** |")


if __name__ == "__main__":
    main()
