# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Facial Emotion Recognition
#
# By default, a ResNet-34 with spatial attention learns eight emotions on AffectNet, is adapted to
# the seven of FER2013, and is then evaluated so that a reviewer can believe it: every accuracy in
# the tables of scores says which images it was taken on, how sure it is, and what it would be
# without the test images that also stand in train.
#
# **How to use this notebook**
#
# - *Kaggle*: attach both datasets, choose GPU T4 ×2, press *Run all*.
# - *Your own machine*:
#   `papermill "Facial Emotion Recognition.ipynb" out.ipynb -f params/local.yaml`.
# - *No data at hand*: off Kaggle just run it. It then draws its own faces and says so loudly.
# - *To change something*: edit the parameters below, or give papermill another file of them.

# %% [markdown]
# ## Settings
#
# Every choice of the workflow is one of these parameters. The defaults are the original notebook's
# recipe at Kaggle's paths; the files in `params/` hold complete sets for other machines.

# %% tags=["parameters"]
# Data: the value "drawn" in all three folders asks for the embedded drawn faces
AFFECTNET_DIR: str = (
    "/kaggle/input/balanced-affectnet"  # holds train and val, and test if there is one
)
FER_TRAIN_DIR: str = "/kaggle/input/fer2013/train"  # a folder per class
FER_TEST_DIR: str = "/kaggle/input/fer2013/test"  # file names tell PublicTest from PrivateTest
PHASES: str = "both"  # both, affectnet or fer2013
MAX_IMAGES: int = 0  # per split, for a quick try; 0 takes all
MAX_BAD_SHARE: float = 0.01  # share of unreadable files that is skipped; more is an error
SELECTION_SIZE: int = 3000  # faces cut from train to choose on where no split is meant for it
DROP_TEST_TWINS: bool = False  # leave out training faces that also stand in test or selection
DROP_CONFLICTS: bool = False  # leave out identical training faces with different labels
DROP_BLANKS: bool = False  # leave out training images that show nothing
NEAR_TWINS: bool = True  # search for near-twins too, up to a minute
FERPLUS_VOTES: str = ""  # CSV of FER+ votes keyed by file name: label noise, FERPLUS_WEIGHT
EXTRA_TEST_DIRS: str = ""  # more folders to score, separated by commas
# Run
OUTPUT_DIR: str = "runs"  # each run gets a folder in here
RUN_NAME: str = ""  # empty takes the date and time
RESUME: str = "auto"  # auto, never, or a run folder to continue
CACHE_DIR: str = ""  # for decoded images; empty takes the user's cache folder
SEED: int = 42  # everything random follows from it
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1 or mps
PRECISION: str = "auto"  # auto, fp32, bf16 or fp16
COMPILE: bool = False  # torch.compile, a minute or two at the start of each phase
TIME_BUDGET_MINUTES: float = 0.0  # stop training cleanly after this; 0 never stops
TENSORBOARD: bool = False  # write the history for TensorBoard too, if it is installed
# Input
IMAGE_SIZE: int = 224  # pixels, both sides, of what the network sees
INPUT_CHANNELS: int = 3  # 3, or 1 for a network that sees grey
AFFECTNET_GREY: bool = False  # phase 1 in grey, as phase 2 always is
BATCH_SIZE: int = 32
# Model
BACKBONE: str = (
    "resnet34"  # resnet18, resnet50, efficientnet_b0, convnext_tiny, vit_b_16 and others
)
PRETRAINED: str = "imagenet"  # imagenet, none, or a file of weights
ATTENTION: str = "spatial"  # none, spatial, channel, se or cbam
ATTENTION_PLACE: str = "last"  # after the last stage, or each (ResNets)
ATTENTION_SAFE_START: bool = False  # start as if there were no attention
STEM: str = "imagenet"  # imagenet, or small1 and small2 for small faces (3x3, stride 1 or 2)
WIDTH: int = 64  # channels of a ResNet's first stage
DROPOUT: float = 0.4  # before the head
HEAD_HIDDEN: int = 256  # units of the head's hidden layer; 0 for none
HEAD_DROPOUT: float = 0.3  # after the hidden layer
CARRY_HEAD: bool = False  # phase 2 keeps the head's rows of the seven shared emotions
# Training
AFFECTNET_EPOCHS: int = 15
FER_EPOCHS: int = 12
OPTIMIZER: str = "adam"  # adam, adamw or sgd (Nesterov, momentum 0.9)
AFFECTNET_LR: float = 0.0001  # learning rate of phase 1
FER_LR_BACKBONE: float = 0.00001  # phase 2 learns at three rates
FER_LR_ATTENTION: float = 0.00005
FER_LR_HEAD: float = 0.001
WEIGHT_DECAY: float = 0.0001
DECAY_NORMS: bool = True  # weight decay also on norms and biases
SCHEDULE: str = "plateau"  # plateau (on the selection accuracy), cosine or onecycle
WARMUP: float = 0.0  # share of the steps with a rising rate (cosine; onecycle, where 0 is 0.3)
PLATEAU_FACTOR: float = 0.5
PLATEAU_PATIENCE: int = 3  # epochs
LOSS: str = "cross_entropy"  # cross_entropy or focal
FOCAL_GAMMA: float = 2.0
LABEL_SMOOTHING: float = 0.1
CLASS_WEIGHTS: str = "balanced"  # balanced, effective or none
LOGIT_ADJUSTMENT: float = 0.0  # strength of the prior in the loss (Menon et al. 2021)
FERPLUS_WEIGHT: float = 0.0  # phase 2 also learns the votes, the label counting 1; 0 is off
SAMPLER: str = "shuffle"  # shuffle, or balanced (each class equally often)
MIXUP: float = 0.0  # alpha; 0 is off
CUTMIX: float = 0.0  # alpha; 0 is off
MIX_PROBABILITY: float = 0.5  # share of batches that are mixed
MIX_UNTIL: float = 1.0  # share of the steps after which mixing ends
START_SIZE: int = 0  # side of the first epochs' inputs, growing to IMAGE_SIZE; 0 is off
GROW_UNTIL: float = 0.6  # share of the epochs after which IMAGE_SIZE is reached
EMA: float = 0.0  # decay of the running average of the weights; 0 is off
CLIP_NORM: float = 0.0  # largest norm of a gradient; 0 is off
EARLY_STOP: int = 0  # epochs without a better selection accuracy; 0 never stops
KEEP: str = "best"  # best epoch on the selection set, or last
AFFECTNET_DETAIL_EVERY: int = 5  # epochs between detailed evaluations; 0 for none
FER_DETAIL_EVERY: int = 3
# Augmentation
FLIP: float = 0.5  # probability
AFFECTNET_ROTATION: float = 8.0  # degrees, to both sides
FER_ROTATION: float = 12.0
AFFECTNET_SHIFT: float = 0.0  # share of the side
FER_SHIFT: float = 0.08
SCALE: float = 0.0  # 0.15 zooms by 0.85 to 1.15
AFFECTNET_JITTER: float = 0.15  # brightness and contrast
FER_JITTER: float = 0.25
AFFECTNET_ERASE: float = 0.0  # probability of an erased box
FER_ERASE: float = 0.15
ERASE_MIN: float = 0.02  # area of the box as a share of the picture
ERASE_MAX: float = 0.12
PADDING: str = "zeros"  # zeros, reflection or border, for what is turned into the picture
AUGMENT_POLICY: str = "none"  # none, or trivial (TrivialAugmentWide)
# Evaluation, exploring, prediction
TTA_VIEWS: int = 10  # deterministic views averaged for the second accuracy; 1 is off
BOOTSTRAP: int = 10000  # draws behind each interval; 0 for none
MIN_CONFIDENCE: float = 0.5  # below this probability an answer is marked as uncertain
ROBUSTNESS: bool = True  # curves over blur, noise, darkness and others
EMBEDDING: bool = True  # the t-SNE map
PHOTO: str = ""  # a photo of your own to predict: a path or an address
GDOWN_ID: str = ""  # the id of a photo on Google Drive
HELPERS_URL: str = ""  # where to install fer_helpers from if it is not here

# %% [markdown]
# ## Setup
#
# The notebook itself is thin: model, training loop, data and figures live in the package
# `fer_helpers`, where each of them can be read as a short essay.

# %% tags=["nbval-ignore-output"]
try:
    import fer_helpers  # noqa: F401
except ModuleNotFoundError:
    import subprocess
    import sys

    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    if not HELPERS_URL or subprocess.call([*pip, HELPERS_URL]):
        raise ModuleNotFoundError(
            "fer_helpers is not here: run `make kaggle` and import build/kaggle/*.ipynb, or set "
            "HELPERS_URL to where pip can install it from."
        ) from None

# %%
import copy
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from IPython.display import display

from fer_helpers import evaluation, explain, exploration, inference, plots, records, runs
from fer_helpers.answers import annotate, show_answer
from fer_helpers.augment import Augment
from fer_helpers.cache import default_cache_dir
from fer_helpers.checkpoints import save_model
from fer_helpers.config import Config

# %%
from fer_helpers.corruptions import fixed_sample, robustness
from fer_helpers.cross_dataset import cross_dataset, cross_dataset_table, load_others, mark_seen
from fer_helpers.data import load_affectnet, load_fer2013
from fer_helpers.data_check import check_data, clean_train, worst_offenders
from fer_helpers.data_folders import settle_data
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.ferplus import VOTES, read_ferplus_votes, vote_shares
from fer_helpers.front_end import explore
from fer_helpers.layouts import canonical_emotion, local_path

# %%
from fer_helpers.model_card import model_card
from fer_helpers.models import build_model, describe, swap_head
from fer_helpers.prediction import predict_faces, predict_single_image, upload_widget
from fer_helpers.preprocess import Preprocess
from fer_helpers.protocol import (
    balance,
    describe_selection,
    points_table,
    score_table,
    score_tests,
)
from fer_helpers.sources import download_example, read_image
from fer_helpers.training import estimate_minutes, train_phase
from fer_helpers.watching import events_folder, watch_epochs

# %% [markdown]
# The parameters become one checked object: a misspelled name, a wrong type or a value out of range
# stops here, all of them at once, and not after an hour of training. So do weights that cannot be
# had, or do not fit.

# %% tags=["nbval-check-output"]
config, banner = settle_data(Config.from_notebook(globals()))
print(banner or "Real faces.")
trial = build_model(2, **config.model_kwargs())  # the network itself comes with phase 1
del trial

# %% [markdown]
# Where to compute, how precisely, and where the results go. One run has one folder: parameters,
# checkpoints, numbers, figures and the model card.


# %%
def fingerprint(config):
    """What decides about the model: a run is continued and trained only where this is the same."""
    return config.fingerprint() | {"PRECISION": where["precision"]}


# %% tags=["nbval-ignore-output"]
device = inference.pick_device(config.device)
where = {"device": device, "precision": inference.pick_precision(config.precision, device)}
run = runs.open_run(
    config.output_dir, config.run_name, config.to_dict(), fingerprint(config), config.resume,
    origin="drawn" if config.drawn else "real",
)  # fmt: skip
started = time.monotonic()
deadline = started + 60 * config.time_budget_minutes if config.time_budget_minutes else None
print(f"Computing on {device} in {where['precision']}. {run.sentence}")

# %% [markdown]
# ## Data
#
# - **AffectNet** (phase 1): eight classes, color. The Kaggle set is balanced by augmentation.
# - **FER2013** (phase 2): seven classes, 48x48 grey. The file names tell the official split: where
#   both halves are there, choices are made on PublicTest, and PrivateTest is scored once.
#
# The sentences printed here say which rule was applied.

# %%
folders = [config.affectnet_dir, config.fer_train_dir, config.fer_test_dir]
cache = local_path(config.cache_dir) if config.cache_dir else default_cache_dir()
if config.drawn:
    drawn = write_demo_faces(cache / "drawn-faces")
    folders = [drawn / "affectnet", drawn / "fer2013" / "train", drawn / "fer2013" / "test"]
reading = {
    name: getattr(config, name) for name in ("selection_size", "max_images", "max_bad_share")
} | {"cache_dir": cache, "size": config.image_size}

# %% tags=["nbval-check-output"]
affectnet = fer = None
if config.phases != "fer2013":
    affectnet = load_affectnet(folders[0], grey=config.affectnet_grey, **reading)
if config.phases != "affectnet":
    fer = load_fer2013(*folders[1:], **reading)
datasets = {name: s for name, s in (("affectnet", affectnet), ("fer2013", fer)) if s is not None}
for splits in datasets.values():
    print(splits.sentence)
    for note in splits.notes:
        print("  -", note)

# %% tags=["nbval-check-output"]
AFFECTNET_CLASSES = affectnet.train.class_names if affectnet else ()
FER_CLASSES = fer.train.class_names if fer else ()
print("AFFECTNET_CLASSES", AFFECTNET_CLASSES)
print("FER_CLASSES      ", FER_CLASSES)
note = "drawn faces" if config.drawn else ""


# %%
def show(figure, name):
    """Keep a figure in the run folder and show it."""
    records.save_figure(run, figure, name)
    display(figure)


def play(draw, name, **choices):
    """Like `show` for what `draw` draws, with widgets for its choices where they can be used."""
    figure = explore(draw, **choices)
    if figure is not None:
        records.save_figure(run, figure, name)


# %% [markdown]
# Votes, other datasets and photos that the parameters name are read now: a misspelled path should
# stop the notebook here and not after the training.

# %% tags=["nbval-check-output"]
others = load_others(
    config.extra_test_dirs, FER_CLASSES or AFFECTNET_CLASSES, run.origin,
    grey=config.affectnet_grey or affectnet is None, **reading,  # as phase 1 keeps its faces
)  # fmt: skip
test_votes = None
if config.ferplus_votes and fer:
    test_votes = read_ferplus_votes(config.ferplus_votes, fer.tests[0])
print(f"{len(others)} other datasets, {'no' if test_votes is None else 'with'} FER+ votes.")

# %% tags=["nbval-check-output"]
photos = {Path(PHOTO).name: read_image(PHOTO)} if PHOTO else {}
if GDOWN_ID:
    path = download_example(GDOWN_ID, run.folder / "photos")
    photos[f"Drive: {path.name}"] = read_image(path)  # PHOTO may have the same name
print(f"{len(photos)} photos of your own.")

# %%
# All that the parameters name is there: only now an earlier, finished run is taken up again.
run.begin(config.to_dict(), {name: splits.learned() for name, splits in datasets.items()})

# %% [markdown]
# How many faces of each class there are, and some of them at random.

# %%
for name, splits in datasets.items():
    parts = {"train": splits.train, "selection": splits.selection, "test": splits.tests[0]}
    counts = {part: faces.counts() for part, faces in parts.items() if faces is not None}
    title = f"{splits.train.dataset}: faces per class"
    show(plots.plot_class_counts(counts, splits.train.class_names, title=title, note=note),
         f"{name}-classes")  # fmt: skip

# %%
chance = np.random.default_rng(config.seed)
for name, splits in datasets.items():
    train = splits.train
    rows = [
        train.images(chance.permutation(np.flatnonzero(train.labels == k))[:4])
        for k in range(len(train.class_names))
    ]
    title = f"{train.dataset}: random training faces"
    show(plots.plot_samples(rows, train.class_names, title=title, note=note), f"{name}-samples")

# %% [markdown]
# Can these data be trusted? Twins inside and across splits, the same picture under two labels,
# blanks, unreadable files, and file names that give the class away. `DROP_TEST_TWINS`,
# `DROP_CONFLICTS` and `DROP_BLANKS` act on the training set; the test sets stay as they are. What
# phase 1 has learned is no leak-free test of phase 2 either.

# %% tags=["nbval-check-output"]
reports = {}
for name, splits in datasets.items():
    reports[name] = check_data(splits, near=0.99 if config.near_twins else None)
    print(f"{splits.train.dataset}\n{reports[name]}\n")

# %%
for name, splits in datasets.items():
    images, labels, captions = worst_offenders(splits, reports[name])
    title = f"{splits.train.dataset}: faces to look at"
    if images:
        show(plots.plot_samples(images, labels, captions=captions, title=title, note=note),
             f"{name}-offenders")  # fmt: skip
    else:
        print(f"{splits.train.dataset}: nothing to look at.")

# %% tags=["nbval-check-output"]
for name, splits in datasets.items():
    datasets[name] = clean_train(
        splits, drop_test_twins=config.drop_test_twins, drop_conflicts=config.drop_conflicts,
        drop_blanks=config.drop_blanks,
    )  # fmt: skip
    dropped = len(splits.train) - len(datasets[name].train)
    print(f"{splits.train.dataset}: {dropped} training faces dropped.")
affectnet, fer = datasets.get("affectnet"), datasets.get("fer2013")
if affectnet and fer:
    datasets["fer2013"] = fer = mark_seen(fer, affectnet)

# %% [markdown]
# Ten people voted on each face of FER2013 for *FER+* (Barsoum et al. 2016). With their votes in
# `FERPLUS_VOTES`, phase 2 can learn them beside the labels (`FERPLUS_WEIGHT`).

# %% tags=["nbval-check-output"]
votes = None
if fer and config.ferplus_weight:
    votes = vote_shares(read_ferplus_votes(config.ferplus_votes, fer.train))
    print(f"{np.count_nonzero(votes.any(1)):,} of {len(votes):,} training faces have votes.")
else:
    print("No votes are learned.")

# %% [markdown]
# ## Augmentation
#
# Training sees each face a little turned, moved or mirrored, brighter or darker, and sometimes with
# a box missing. Turning, moving and mirroring are one resampling of the whole batch, on the device.
# Phase 2 always works in grey.

# %% tags=["nbval-check-output"]
channels = config.input_channels
affectnet_transforms = {
    "train": Augment(**config.augment_kwargs("affectnet")),
    "val": Preprocess(size=config.image_size, channels=channels, grey=config.affectnet_grey),
}
fer_transforms = {
    "train": Augment(**config.augment_kwargs("fer2013")),
    "val": Preprocess(size=config.image_size, channels=channels, grey=True),
}
transforms = {"affectnet": affectnet_transforms, "fer2013": fer_transforms}
print(fer_transforms["train"])
print(fer_transforms["val"])

# %%
for name, splits in datasets.items():
    train, plain = splits.train, transforms[name]["val"]
    faces = train.images(chance.permutation(len(train))[:5])
    batch = torch.from_numpy(faces).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(config.seed)
    augmented = plain.undo(transforms[name]["train"](batch, plain, generator))
    title = f"{train.dataset}: what augmentation does"
    show(plots.plot_augmentation(augmented, faces, title=title, note=note), f"{name}-augmentation")

# %% [markdown]
# ## Phase 1: AffectNet, 8 classes
#
# The network: a backbone that turns a face into a map of features, the spatial attention that
# weighs the places of this map, and a small head that answers.

# %% tags=["nbval-check-output"]
torch.manual_seed(config.seed)
classes = (affectnet or fer).train.class_names
start = build_model(len(classes), **config.model_kwargs())
phases = {}  # what each phase of training leaves behind
print(describe(start))

# %% [markdown]
# Before training, a few steps are timed: better to know now than to wonder later.

# %% tags=["nbval-ignore-output"]
minutes = 0.0
for name, splits in datasets.items():
    minutes += estimate_minutes(
        start if name == "affectnet" or affectnet is None else swap_head(
            copy.deepcopy(start), classes, FER_CLASSES),
        splits.train, splits.selection, config.recipe(name), **where,
        preprocess=transforms[name]["val"], augment=transforms[name]["train"],
    )  # fmt: skip
length = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"
left = " What this run has done already is not done again." if run.resumed else ""
faster = "a GPU, " * (device.type == "cpu") + "a smaller IMAGE_SIZE, fewer epochs"
print(f"Training takes {length} here; faster: {faster}.{left}")

# %%
machine = {
    "seed": config.seed, **where, "compile": config.compile,
    "deadline": deadline,
    "extra": {"origin": run.origin, "min_confidence": config.min_confidence},
}  # fmt: skip
timing = {}
events = events_folder(run.folder / "tensorboard") if config.tensorboard else None

# %% [markdown]
# While a phase trains, a notebook that is open in front of you shows its curves growing. Training
# is measured on augmented faces by the loss that is learned (smoothed, weighted, mixed), selection
# on plain faces by cross-entropy: compare each curve with itself, not one with the other.


# %%
def curves(name, history, best_epoch=None):
    """Accuracy and loss of a phase, epoch by epoch."""
    title = {"affectnet": "Phase 1: AffectNet", "fer2013": "Phase 2: FER2013"}[name]
    selection = describe_selection(datasets[name].selection)
    return plots.plot_history(
        history, phase=title, selection_name=selection, best_epoch=best_epoch, note=note
    )


# %%
if affectnet:
    run.expect(fingerprint(config))
    eight = copy.deepcopy(start)
    phases["affectnet"] = phase1 = train_phase(
        eight, affectnet.train, affectnet.selection, config.recipe("affectnet"),
        run.folder / "affectnet", name="AffectNet", preprocess=affectnet_transforms["val"],
        augment=affectnet_transforms["train"], **machine,
        on_epoch=watch_epochs(partial(curves, "affectnet"), events and events / "affectnet"),
    )  # fmt: skip

# %%
if affectnet and phase1.history:
    records.write_history(run, "affectnet", phase1.history)
    timing["affectnet"] = sum(row["seconds"] for row in phase1.history)
    show(curves("affectnet", phase1.history, phase1.best_epoch), "affectnet-history")

# %% [markdown]
# Phase 1 is scored once, on images that nothing was chosen on. Every answer is kept, so that two
# runs can be compared picture by picture.


# %%
def keep_predictions(scores, temperature):
    """Write the probabilities of one view of every scored set into the run folder."""
    for score in scores:
        test = score.test
        path = records.write_predictions(
            run, files=test.files, labels=test.labels, class_names=test.class_names,
            probabilities=evaluation.softmax(score.logits, temperature), dataset=test.dataset,
            split=test.split, leak_free=test.leak_free,
        )  # fmt: skip
    rows = sum(len(score.test) for score in scores)
    print(f"{rows:,} rows written to {path.name}; a pooled set repeats its halves.")


# %%
first = []
scoring = {"views": config.tta_views, "bootstrap": config.bootstrap, "seed": config.seed} | where
if affectnet:
    early = f"training was stopped early ({phase1.stopped})" if phase1.stopped else ""
    which = early or ("the network after phase 1" if fer else "")
    of_eight = score_tests(eight, affectnet, affectnet_transforms["val"], note=which, **scoring)
    first = [entry for score in of_eight[0] for entry in score.entries]
    keep_predictions(*of_eight[:2])
    display(score_table(of_eight[0]))

# %% [markdown]
# ## Phase 2: FER2013, 7 classes
#
# The head is replaced by a new one for seven classes. With `CARRY_HEAD` it keeps what it knows of
# the seven shared emotions, matched by name; Contempt, which FER2013 lacks, is dropped. Backbone,
# attention and head then learn at rates of their own (`FER_LR_...`). With `FERPLUS_WEIGHT`, a
# second head learns people's votes, and stays behind when training has ended.


# %%
def with_seven_classes(net):
    """A copy of a network, with a head for FER2013's classes."""
    net = copy.deepcopy(net)
    if not affectnet:
        return net
    generator = torch.Generator().manual_seed(config.seed)
    return swap_head(
        net, AFFECTNET_CLASSES, FER_CLASSES, carry=config.carry_head, generator=generator
    )


# %%
if fer and not (affectnet and phase1.stopped):
    run.expect(fingerprint(config))
    seven = with_seven_classes(eight if affectnet else start)
    phases["fer2013"] = phase2 = train_phase(
        seven, fer.train, fer.selection, config.recipe("fer2013"), run.folder / "fer2013",
        name="FER2013", preprocess=fer_transforms["val"], augment=fer_transforms["train"],
        votes=votes, **machine,
        on_epoch=watch_epochs(partial(curves, "fer2013"), events and events / "fer2013"),
    )  # fmt: skip

# %%
if "fer2013" in phases and phase2.history:
    records.write_history(run, "fer2013", phase2.history)
    timing["fer2013"] = sum(row["seconds"] for row in phase2.history)
    show(curves("fer2013", phase2.history, phase2.best_epoch), "fer2013-history")

# %% [markdown]
# ## Evaluation
#
# - The *headline* is the first row: one view, images that nothing was chosen on.
# - *Views*: the mean over mirrored and slightly moved copies, always the same ones.
# - *Leak-free*: without the test images that also stand in train.
# - A run that was stopped says so, and is scored again when it has gone on to its end.
# - The interval says how far the accuracy would move with other images of the same kind.
# - *Top-2*: the right answer is among the two likeliest. *Balanced accuracy* and *macro-F1* are
#   means over classes, so that rare ones count as much; *kappa* is the accuracy beyond chance.
# - *NLL* (negative log-likelihood), *Brier* (squared error of the probabilities) and *ECE*
#   (expected calibration error: the mean gap between confidence and accuracy) say how far the
#   network's probabilities are off: lower is better. They are made from its raw scores, the
#   *logits*, divided by one number, the *temperature*. That was fitted on other images, so it may
#   also hurt a little; *before temperature* is without it.

# %%
final = list(phases)[-1]
splits, pre, stopped = datasets[final], transforms[final]["val"], phases[final].stopped
class_names = splits.train.class_names
early = f"training was stopped early ({stopped})" if stopped else ""
if final == "fer2013":
    model, of_final = seven, score_tests(seven, splits, pre, note=early, **scoring)
else:
    model, of_final = eight, of_eight
scores, temperature, chosen_on = of_final
headline = scores[0]
test, numbers = headline.test, headline.numbers
confusion = np.array(numbers["confusion"])
about = f"{test.dataset} {test.split}, {len(test):,} images"
about = ", ".join(filter(None, (about, early, note)))
display(score_table(scores))

# %%
scored = ", ".join(filter(None, (f"{test.dataset} {test.split}", early, note)))
print(evaluation.scores_text(numbers, scored))
print()
print(evaluation.report_text(confusion, class_names))

# %% [markdown]
# The same network at two operating points. The second takes a part (tau) of the logarithm of each
# class's share off the logits, as much as gives the best macro-F1 on the selection set: it usually
# finds more of the rare classes and is right a little less often. Tau 0 means that nothing was to
# be gained: both rows are the same. The headline stays the first.

# %%
results = first if final == "affectnet" else [e for s in scores for e in s.entries] + first
balanced_shift, metrics = [], {"results": results, "training": {}}
if chosen_on is not None:
    balanced, balanced_shift = balance(headline, splits, chosen_on, bootstrap=config.bootstrap)
    metrics["results"] = [*results, *balanced.entries]
    display(points_table(headline, balanced))
for name, phase in phases.items():
    metrics["training"][name] = {
        "best_epoch": phase.best_epoch, "stopped": phase.stopped,
        "selection_set": describe_selection(datasets[name].selection),
    }  # fmt: skip

# %% [markdown]
# Which class is taken for which: first as counts, then as shares of each true class.

# %%
show(plots.plot_confusion(confusion, class_names, note=about), "confusion")

# %%
show(plots.plot_class_accuracy(confusion, class_names, note=about), "class-accuracy")
show(plots.plot_class_scores(numbers["per_class"], note=about), "class-scores")

# %% [markdown]
# Is that more than chance, and which confusions stand out? The chi-square test answers the first
# question, and nearly every network passes it; the lists below it answer the second. As in the
# original, *high* confusions take more than 15 % of a class, and *weak* classes are right less than
# half the time.

# %%
print(evaluation.chi_square_text(evaluation.chi_square(confusion, class_names)))

# %% [markdown]
# Does it fail on blurred or on small faces? A picture tells its sharpness and its size itself, so
# thirds of the test set are scored apart. (All of FER2013 is of one size.)

# %%
probabilities = evaluation.softmax(headline.logits, temperature)
predicted = probabilities.argmax(1)
names = np.array(class_names)
pictures = (test.images(position) for position in range(len(test)))
parts = exploration.slices(predicted == test.labels, pictures, test.native)
metrics["slices"] = {"stamp": headline.entries[0]["stamp"], "parts": parts}
print(exploration.slices_text(parts))

# %% [markdown]
# The model, every prediction and the numbers so far are kept now, whatever happens further down.

# %%
extra = {
    "origin": run.origin, "dataset": test.dataset, "run": run.name,
    "best_epoch": phases[final].best_epoch, "temperatures": headline.temperatures,
}  # fmt: skip
save_model(
    run.folder / "model.safetensors", model, class_names, pre, temperature=temperature,
    extra={**extra, "min_confidence": config.min_confidence, "balanced_shift": balanced_shift},
)  # fmt: skip
keep_predictions(scores, temperature)
_ = records.write_metrics(run, metrics)

# %% [markdown]
# ## Explore
#
# Numbers say how often the network is wrong, faces say how. Where somebody watches (Jupyter, VS
# Code, Colab, Kaggle's editor), the figures made with `play` have menus and sliders; elsewhere they
# show one choice.


# %%
def gallery(positions, title):
    """Faces of the test set with truth, answer and confidence; None if there is no such face."""
    if len(positions):
        return plots.plot_mistakes(
            test.images(positions), names[test.labels[positions]], names[predicted[positions]],
            probabilities[positions].max(1), title=title, note=about,
        )  # fmt: skip
    print(f"{title}: there is no such face.")


# %% [markdown]
# Faces that the network gets wrong, chosen at random, with what it would have bet. The most
# confident mistakes below them are often mistakes of the label, not of the network.

# %%
wrong = exploration.pick_faces(probabilities, test.labels, seed=config.seed)
surest = exploration.pick_faces(probabilities, test.labels, how="confident")
if len(wrong):
    show(gallery(wrong, "Misclassified faces, at random"), "mistakes")
    show(gallery(surest, "The most confident mistakes"), "confident-mistakes")
else:
    print("No face of the test set was misclassified.")

# %% [markdown]
# Look into a cell of the confusion matrix. The first choice is the confusion that takes the largest
# share of its true class.

# %%
confused = evaluation.top_confusions(confusion, class_names, k=1, above=0.0)
pair = (confused[0]["truth"], confused[0]["prediction"]) if confused else class_names[:2]


def cell_of(truth=pair[0], answer=pair[1]):
    """Faces of one true class that got one answer."""
    cell = {"truth": class_names.index(truth), "prediction": class_names.index(answer)}
    found = exploration.pick_faces(probabilities, test.labels, **cell, seed=config.seed)
    return gallery(found, f"True {truth}, taken for {answer}")


play(cell_of, "cell", truth=list(class_names), answer=list(class_names))


# %% [markdown]
# From guessing to certainty: faces that were answered with about the same confidence. Of those
# answered with 50 %, about half should be right.


# %%
def answered_with(confidence=0.5):
    """The twelve faces whose confidence is nearest to one value."""
    distance = np.abs(probabilities.max(1) - confidence)
    nearest = np.argsort(distance, kind="stable")[:12]
    low, high = 100 * np.sort(probabilities[nearest].max(1))[[0, -1]]
    right = int((predicted == test.labels)[nearest].sum())
    title = f"Answered with {low:.0f} to {high:.0f} %: {right} of {len(nearest)} right"
    return gallery(nearest, title)


play(answered_with, "confidence", confidence=(0.0, 1.0, 0.05))

# %% [markdown]
# Labels that people dispute: given the votes of *FER+* in `FERPLUS_VOTES`, the faces whose label
# few of ten people chose are shown.

# %%
if test_votes is not None and final == "fer2013":
    choices = [canonical_emotion(name) for name in VOTES]
    agree = exploration.vote_agreement(predicted, test.labels, test_votes, choices, class_names)
    print(exploration.votes_text(agree))
    suspects = exploration.label_suspects(
        probabilities, test.labels, test_votes, choices, class_names
    )
    images = test.images([suspect["position"] for suspect in suspects])
    if suspects:
        show(plots.plot_suspects(images, suspects, note=about), "label-suspects")
    else:
        print("No label is disputed.")
else:
    later = "Votes are compared after phase 2." if fer else "PHASES leaves out FER2013's votes."
    print(later if config.ferplus_votes else "FERPLUS_VOTES names no table of votes.")

# %% [markdown]
# Where the network looked, on faces it got right and wrong. The *mask* is what its own attention
# multiplied the features with (plus one half with `ATTENTION_SAFE_START`). *Grad-CAM* (Selvaraju et
# al. 2017; an extra) shows the places that spoke for its answer.


# %%
def batch_of(positions):
    """Faces of the test set as the network takes them."""
    return pre(torch.from_numpy(test.images(positions)).permute(0, 3, 1, 2)).to(device)


right = np.flatnonzero(predicted == test.labels)
looked = np.concatenate([chance.permutation(right)[:3], chance.permutation(wrong)[:3]])
maps, missing = explain.all_maps(model, batch_of(looked), predicted[looked])
for sentence in missing:
    print(sentence)
if maps:
    captions = [f"true {names[test.labels[k]]}\nsays {names[predicted[k]]}" for k in looked]
    show(plots.plot_attention(test.images(looked), maps, captions, note=about), "attention")

# %% [markdown]
# Such pictures look convincing even on a network that has learned nothing. So: how similar (rank
# correlation) is each map to the one of the same network with random weights? Near 0, what was
# learned made the map (or it is flat); near 1, it explains nothing (Adebayo et al. 2018).

# %%
for name in maps:
    survived = explain.randomization_check(
        lambda net, faces, make=explain.MAPS[name]: make(net, faces, predicted[looked]),
        model, batch_of(looked),
    )  # fmt: skip
    print(f"{name}: {survived:+.2f}")


# %% [markdown]
# Choose a face by its number: what spoke for each of its three likeliest emotions?


# %%
def looked_at(number=int(looked[-1])):
    """One face under the maps of its three likeliest answers."""
    top = np.argsort(-probabilities[number], kind="stable")[:3]
    maps, _ = explain.all_maps(model, batch_of([number] * len(top)), top)
    captions = [f"{names[k]}\n{100 * probabilities[number, k]:.0f} %" for k in top]
    return plots.plot_attention(
        test.images([number] * len(top)), maps, captions, note=about,
        title=f"Face {number}: true {names[test.labels[number]]}",
    )  # fmt: skip


if maps:
    play(looked_at, "looked-at", number=(0, len(test) - 1))

# %% [markdown]
# Can its confidence be believed? The temperature was fitted on the selection set, where there is
# one; the band is what a perfectly calibrated network of this many faces would show.

# %%
after = evaluation.reliability(probabilities, test.labels, seed=config.seed)
before = None
if chosen_on is not None:
    untouched = evaluation.softmax(headline.logits)
    before = evaluation.reliability(untouched, test.labels, seed=config.seed)
show(plots.plot_reliability(after, before, note=about), "reliability")

# %% [markdown]
# What silence buys: if the network only answered when it is sure. Where there is a selection set,
# the threshold was chosen on it so that 80 % of its faces get an answer, and is judged on the test
# set. The slider is for looking: what it shows here chooses nothing.

# %%
chosen = {"threshold": 0.5}
if chosen_on is not None:
    sure = evaluation.softmax(chosen_on, temperature)
    chosen = evaluation.abstain_threshold(sure, splits.selection.labels, coverage=0.8)
    free, least = test.leak_free, chosen["threshold"]
    judged = evaluation.answered_above(probabilities, test.labels, least)
    twin = None
    if free.any():
        twin = evaluation.answered_above(probabilities[free], test.labels[free], least)
        twin["n"] = int(free.sum())
    metrics["abstain"] = {"stamp": headline.entries[0]["stamp"], **judged, "leak_free": twin}

# %%
curve = evaluation.risk_coverage(probabilities, test.labels)


def silence(threshold=chosen["threshold"]):
    """How many faces are answered, and how many of these wrong, from one confidence on."""
    answered = evaluation.answered_above(probabilities, test.labels, threshold)
    return plots.plot_risk_coverage(curve, answered, note=about)


play(silence, "risk-coverage", threshold=(0.0, 1.0, 0.01))

# %% [markdown]
# One class against the rest, and which confusions are more than chance would give.

# %%
found = exploration.precision_recall(probabilities, test.labels, class_names)
show(plots.plot_precision_recall(found, class_names, note=about), "precision-recall")
show(
    plots.plot_residuals(evaluation.chi_square(confusion, class_names), class_names, note=about),
    "residuals",
)

# %% [markdown]
# Which faces look alike to the network? Each point is one of at most 1,000 faces of the test set,
# always the same; near points have similar features. Below, one class against another.

# %%
fixed = fixed_sample(len(test))
of_these = about.replace(f"{len(test):,} images", f"{len(fixed):,} of {len(test):,} images")
mapped = config.embedding and len(fixed) >= 5
if mapped:
    features = inference.embed(model, test.take(fixed), pre, **where)
    points = exploration.embedding_map(features, seed=config.seed)
    figure = plots.plot_embedding(points, test.labels[fixed], class_names, note=of_these)
    show(figure, "embedding")
else:
    print("EMBEDDING is off." if not config.embedding else "Fewer than 5 faces make no map.")


# %%
def against(one=pair[0], other=pair[1]):
    """Two classes on the same map."""
    return plots.plot_embedding(
        points, test.labels[fixed], class_names, highlight=(one, other),
        title=f"{one} and {other} on this map", note=of_these,
    )  # fmt: skip


if mapped:
    play(against, "embedding-pair", one=list(class_names), other=list(class_names))

# %% [markdown]
# How much blur, noise, compression, turning, covering or darkness can it take? On the same faces.

# %%
if config.robustness:
    images, labels = test.images(fixed), test.labels[fixed]
    accuracies = robustness(
        lambda faces: inference.predict_logits(model, faces, pre, **where), images, labels
    )
    stamp = headline.entries[0]["stamp"]
    words = "; ".join(filter(None, (stamp["note"], "fixed sample of the set")))
    stamp = {**stamp, "n": len(fixed), "note": words}
    metrics["robustness"] = {"stamp": stamp, "accuracy": accuracies}
    most = float(np.bincount(labels).max() / len(labels))
    show(plots.plot_robustness(accuracies, chance=most, note=of_these), "robustness")
else:
    print("ROBUSTNESS is off.")

# %% [markdown]
# Other datasets, named in `EXTRA_TEST_DIRS`: scored on the classes that they share with the model.
# A set is marked *seen* if exact copies of its pictures, its files or its name are among what any
# phase has trained or chosen on. Copies that were compressed or resized anew are not found.

# %%
learned = [affectnet] if final == "affectnet" else datasets.values()
used = [faces for s in learned for faces in (s.train, s.selection) if faces is not None]
begun_elsewhere = config.pretrained not in ("none", "imagenet")
perhaps = f"perhaps, by what made {config.pretrained}"

# %% tags=["nbval-check-output"]
rows = []
for other in others:
    logits = inference.predict_logits(model, other, pre, **where)
    stamp = records.stamp(
        other.split, len(other), 1, config.seed, describe_selection(splits.selection),
        other.content_hash, other.origin, dataset=other.dataset, device=device.type,
        precision=where["precision"], note=early,
    )  # fmt: skip
    row = cross_dataset(other, logits, class_names, used, stamp, temperature=temperature,
                        bootstrap=config.bootstrap)  # fmt: skip
    if begun_elsewhere:  # what that file has seen is not known
        row |= {"seen": row["seen"] or perhaps, "leak_free": None}
    rows.append(row)
metrics["cross_dataset"] = rows
display(cross_dataset_table(rows)) if rows else print("EXTRA_TEST_DIRS names no other dataset.")

# %% [markdown]
# ## Single-image prediction
#
# One picture in, one answer out. The picture is prepared exactly as in training: the saved file
# knows how, and what it learned from. Below: a random test face, and, where the parameters name
# one, a photo of your own and one from Google Drive, with a figure of all their faces. Where
# somebody watches, an upload button takes more photos.

# %%
position = int(chance.integers(len(test)))
saved = run.folder / "model.safetensors"
answer = predict_single_image(test.images([position])[0], saved, crop="none")
print(f"truth {names[test.labels[position]]}, answer {answer.label} ({answer.confidence:.1f} %)")

# %% tags=["nbval-check-output"]
everybody = {name: predict_faces(photo, saved) for name, photo in photos.items()}
for name, answers in everybody.items():
    print(f"{name}:" if len(answers) == 1 else f"{name}, the largest of {len(answers)} faces:")
    show_answer(answers[0])
if not photos:
    print("Set PHOTO to a path or an address, or GDOWN_ID, to see the answer for a photo.")

# %%
for name, photo in photos.items():
    labeled = annotate(photo, everybody[name])
    labeled.thumbnail((1000, 1000))
    display(labeled)
button = upload_widget(saved)
if button is not None:
    display(button)

# %% [markdown]
# ## Save
#
# The model and its predictions are kept already. Now the numbers that came since, what the clock
# said, and the model card, which is written from these files and from nothing else.

# %% tags=["nbval-ignore-output"]
records.write_metrics(run, metrics)
records.write_timing(run, {**timing, "this session": time.monotonic() - started})
if not stopped:
    run.finish()
model_card(run)
print(f"Saved in {run.folder}:")
print("\n".join(f"  {path.name}" for path in sorted(run.folder.iterdir())))

# %% [markdown]
# What next? Read `MODEL_CARD.md` in that folder. Ask the model about a photo:
# `python -m fer_helpers me.jpg --model` and the folder. Change one parameter, give the run another
# `RUN_NAME`, and put both side by side in `notebooks/compare_runs.ipynb`.
