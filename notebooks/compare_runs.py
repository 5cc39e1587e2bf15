# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare runs
#
# Which recipe is better, and is the difference more than luck? This notebook reads any number of
# run folders and answers from their files alone: no picture and no model is loaded.
#
# - Each score stands beside its interval, its leak-free twin and the set its epoch was chosen on.
# - Several seeds of one recipe are summed up as mean ± standard deviation.
# - Two runs on the same pictures are compared picture by picture (McNemar).

# %% tags=["parameters"]
RUNS: str = ""  # run folders, or folders of runs, separated by commas; empty takes all in runs/

# %% [markdown]
# ## The runs
#
# Without any run to look at, three *made-up* ones are written to a temporary folder, so that the
# notebook shows what it does. No model stands behind their numbers. A folder that cannot be read is
# skipped, with the reason; a run that was stopped early is shown, but not in a mean over seeds.

# %%
import tempfile
from pathlib import Path

from IPython.display import display

from fer_helpers import comparison
from fer_helpers.evaluation import p_text
from fer_helpers.layouts import local_path
from fer_helpers.plots import plot_mcnemar

names = [name.strip() for name in RUNS.split(",") if name.strip()] or ["runs"]
paths = [local_path(name) for name in names]
folders = [folder for path in paths for folder in comparison.find_runs(path) or [path]]
made_up = not RUNS.strip() and folders == [Path("runs")]

# %%
scratch = tempfile.TemporaryDirectory()
records, skipped = comparison.read_runs([] if made_up else folders)
if made_up:
    print("No runs in runs/ (from here, RUNS may be ../runs): the three below are MADE UP.")
    for name, seed, skill in (("plain 1", 1, 2.5), ("plain 2", 2, 2.5), ("better", 3, 3.2)):
        comparison.write_made_up_run(scratch.name, f"made-up {name}", seed=seed, skill=skill)
    records, skipped = comparison.read_runs(comparison.find_runs(scratch.name))
scratch.cleanup()
print(*skipped, sep="\n", end="\n" if skipped else "")
if not records:
    raise SystemExit("None of the folders in RUNS can be read; the reasons stand above.")
note = " and ".join(sorted({f"{record.origin} faces" for record in records}))
for record in records:
    print(f"{record.name}: {record.origin} faces, {'' if record.finished else 'not '}finished")

# %% [markdown]
# ## Scores
#
# Only lines of the same dataset, split and content are about the same pictures; the content is the
# hash of the files that were read.

# %%
table = comparison.compare(records)
shown = ["run", "origin", "dataset", "split", "n", "views", "seed", "accuracy", "low", "high"]
display(table[[*shown, "note"]].round(4))
display(table.drop(columns=["origin", "seed", "accuracy", "low", "high", "headline"]).round(4))

# %% [markdown]
# ## Intervals
#
# Headline scores only. Circles are all pictures of the split, diamonds leave out those that also
# stand in train: a circle far to the right of its diamond is a leak at work.

# %%
headlines = table[table["headline"]].reset_index(drop=True)
display(comparison.plot_intervals(headlines if len(headlines) else table))

# %% [markdown]
# ## Several seeds
#
# Runs that differ in nothing but the seed, and the 95 % interval of their mean. One seed is an
# anecdote, and two recipes whose intervals lie over each other may well be equal.

# %%
seeds = comparison.compare_seeds(records)
if len(seeds):
    display(seeds.round(4))
else:
    print("No two runs here differ in nothing but the seed.")

# %% [markdown]
# ## McNemar: the same pictures, two runs
#
# Of the pictures that exactly one of two runs got right, how many are on either side? If the runs
# were equally good, it would be half and half; the p-value says how surprising the split is. With
# many pairs some look surprising by luck alone, so the matrix shows values corrected for their
# number (Holm). `low` and `high` in the table bound the difference in accuracy (95 %). Where a set
# contains the images that epochs were chosen on, the line below the matrix says so: the run that
# chose more is favored there.

# %%
sets = table[["dataset", "split"]].drop_duplicates().itertuples(index=False, name=None)
for dataset, split in sets if len(records) > 1 else ():
    pairs = comparison.mcnemar_pairs(records, dataset, split)
    matrix = comparison.mcnemar_matrix(pairs)
    notes = table.loc[(table["dataset"] == dataset) & (table["split"] == split), "note"]
    seen = notes.str.contains("selection split").any()
    about = f"contains the selection split, {note}" if seen else note
    title = f"{dataset} {split}: McNemar, p-values after Holm"
    display(plot_mcnemar(matrix, list(matrix), title=title, note=about))
    chances = pairs[["p_value", "p_holm"]].map(p_text, na_action="ignore")
    display(pairs.round(4).assign(**chances))
if len(records) == 1:
    print("One run alone: there is no pair to compare.")

# %% [markdown]
# ## Curves
#
# Accuracy on the selection set and training loss, epoch by epoch, over each other.

# %%
display(comparison.plot_histories(records, "selection_accuracy"))

# %%
display(comparison.plot_histories(records, "train_loss"))
