import ast
import inspect
import itertools
import math
import re
import sys
import textwrap
import typing
from pathlib import Path

import pytest
import yaml

from fer_helpers import config as module
from fer_helpers.config import DATA_FOLDERS, Config, ConfigError, Recipe, read_parameters
from fer_helpers.models import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(ROOT.glob("params/*.yaml"))
SCRIPT = ROOT / "notebooks" / "Facial Emotion Recognition.py"


def refused(values):
    """The lines of the error about `values`, without its headline."""
    with pytest.raises(ConfigError) as caught:
        Config.from_values(values, "The test")
    headline, *lines = str(caught.value).splitlines()
    assert headline.startswith(f"The test has {len(lines)} unusable parameter")
    return [line.removeprefix("  - ") for line in lines]


# One parameter


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("BATCH_SIZE", "32", "BATCH_SIZE should be a valid integer, not '32'"),
        ("BATCH_SIZE", 32.5, "BATCH_SIZE should be a valid integer"),
        ("BATCH_SIZE", 1, "BATCH_SIZE should be greater than or equal to 2, not 1"),
        ("BATCH_SIZE", True, "BATCH_SIZE should be a valid integer, not True"),
        ("COMPILE", 1, "COMPILE should be a valid boolean"),
        ("COMPILE", "yes", "COMPILE should be a valid boolean, not 'yes'"),
        ("PHASES", "first", "PHASES should be 'both', 'affectnet' or 'fer2013', not 'first'"),
        ("PHASES", None, "PHASES should be"),
        ("AFFECTNET_LR", "fast", "AFFECTNET_LR should be a valid number, not 'fast'"),
        ("AFFECTNET_LR", 0, "AFFECTNET_LR should be greater than 0"),
        ("WEIGHT_DECAY", math.inf, "WEIGHT_DECAY should be a finite number"),
        ("WEIGHT_DECAY", "nan", "WEIGHT_DECAY should be a finite number"),
        ("EMA", 1.0, "EMA should be less than 1"),
        ("OUTPUT_DIR", 3, "OUTPUT_DIR should be text (quoted in a file"),
        ("RUN_NAME", "a/b", "RUN_NAME should be letters, digits, spaces, dots, - and _, without a"),
        ("RUN_NAME", "demo.", "RUN_NAME should be letters, digits, spaces, dots"),
        ("RUN_NAME", ".demo", "RUN_NAME should be letters, digits, spaces, dots"),
        ("OUTPUT_DIR", " ", "OUTPUT_DIR should be a folder"),
        ("RESUME", "", "RESUME should be 'auto', 'never' or a run folder"),
        ("PRETRAINED", "", "PRETRAINED should be 'imagenet', 'none' or a file of weights"),
        ("INPUT_CHANNELS", True, "INPUT_CHANNELS should be 1 or 3, not 'True'"),
        ("INPUT_CHANNELS", 3.0, "INPUT_CHANNELS should be 1 or 3, not '3.0'"),
        ("DEVICE", "gpu", "DEVICE should be 'auto', 'cpu', 'mps', 'cuda' or 'cuda:1', not 'gpu'"),
        ("BACH_SIZE", 32, "BACH_SIZE is not a parameter; did you mean BATCH_SIZE?"),
        ("XYZZY", 32, "XYZZY is not a parameter"),
        ("EMBEDDING", [1], "EMBEDDING should be"),
        ("batch_size", 32, "batch_size is not a parameter; did you mean BATCH_SIZE?"),
    ],
)
def test_unusable_value_is_explained(name, value, words):
    (line,) = refused({name: value})
    assert line.startswith(words)


@pytest.mark.parametrize("value, meant", [("false", False), ("true", True), (True, True)])
def test_switches_may_be_spelled_as_in_the_files(value, meant):
    """papermill's `-p EMBEDDING false` arrives as text."""
    assert Config.from_values({"EMBEDDING": value}, "x").embedding is meant


def test_a_number_where_text_is_wanted_is_explained():
    (line,) = refused({"RUN_NAME": 2024})
    assert line == (
        "RUN_NAME should be text (quoted in a file, -r instead of -p for papermill), not 2024"
    )


@pytest.mark.parametrize("value", ["1e-3", "1.0e-3", 0.001])
def test_scientific_notation_works_as_text(value):
    assert Config.from_values({"AFFECTNET_LR": value}, "x").affectnet_lr == 0.001


def test_whole_number_is_fine_where_a_fraction_is_wanted():
    assert Config.from_values({"FLIP": 1}, "x").flip == 1.0


def test_device_with_a_number():
    assert Config.from_values({"DEVICE": "cuda:1"}, "x").device == "cuda:1"


# Several


def test_everything_wrong_is_listed_at_once():
    lines = refused(
        {
            "BACH_SIZE": 32,
            "EMA": 2.0,
            "OPTIMIZER": "lion",
            "KEEP": "last",
            "EARLY_STOP": 3,  # does not fit KEEP
            "ERASE_MIN": 0.5,
            "ERASE_MAX": 0.1,
            "AFFECTNET_DIR": "drawn",  # drawn and real
        }
    )
    found = "\n".join(lines)
    assert len(lines) == 6, found
    for words in ("BACH_SIZE", "EMA should", "OPTIMIZER", "EARLY_STOP", "ERASE_MIN", "never meet"):
        assert words in found


@pytest.mark.parametrize("names", [DATA_FOLDERS[:1], DATA_FOLDERS[1:], DATA_FOLDERS[:2]])
def test_drawn_and_real_faces_never_meet(names):
    (line,) = refused({name.upper(): "drawn" for name in names})
    assert "drawn and real faces never meet in one run" in line


def test_rare_classes_are_not_made_up_for_twice():
    (line,) = refused({"SAMPLER": "balanced"})
    assert "set CLASS_WEIGHTS to 'none'" in line
    assert Config.from_values({"SAMPLER": "balanced", "CLASS_WEIGHTS": "none"}, "x")


def test_a_rise_that_no_schedule_makes_is_refused():
    (line,) = refused({"WARMUP": 0.1})
    assert line.startswith("WARMUP needs SCHEDULE 'cosine' or 'onecycle'")
    (line,) = refused({"WARMUP": 0.1, "SCHEDULE": "cosin"})
    assert line.startswith("SCHEDULE should be")


@pytest.mark.parametrize("draws", [1, 99])
def test_too_few_draws_make_no_interval(draws):
    assert refused({"BOOTSTRAP": draws}) == [
        f"BOOTSTRAP ({draws}) should be 0, or 100 and more draws"
    ]
    assert all(Config.from_values({"BOOTSTRAP": fine}, "x") for fine in (0, 100))


@pytest.mark.parametrize("sizes", [{"IMAGE_SIZE": 31}, {"START_SIZE": 31}])
def test_convnext_takes_no_picture_below_32_px(sizes):
    (line,) = refused({"BACKBONE": "convnext_tiny", **sizes})
    assert "31 px are too few" in line
    Config.from_values({"BACKBONE": "convnext_tiny", **dict.fromkeys(sizes, 32)}, "x")


def test_the_parameters_know_every_backbone():
    (line,) = refused({"BACKBONE": "resnt34"})
    assert line.startswith("BACKBONE should be 'resnet18', 'resnet34'")
    assert typing.get_args(Config.model_fields["backbone"].annotation) == BACKBONES


def test_votes_are_learned_only_where_there_are_some():
    (line,) = refused({"FERPLUS_WEIGHT": 0.5})
    assert line.startswith("FERPLUS_WEIGHT (0.5) has no votes to learn: set FERPLUS_VOTES")
    assert refused({"FERPLUS_WEIGHT": 1.5, "FERPLUS_VOTES": "x.csv"})
    config = Config.from_values({"FERPLUS_WEIGHT": 0.5, "FERPLUS_VOTES": "x.csv"}, "x")
    assert config.recipe("affectnet").vote_weight == 0
    assert config.recipe("fer2013").vote_weight == 0.5


# The notebook's cell and the parameter files


def parameters_cell():
    """Name -> (type, default) of the notebook's parameters cell."""
    cell = (
        SCRIPT.read_text(encoding="utf-8").split('# %% tags=["parameters"]\n')[1].split("# %%")[0]
    )
    return {
        line.target.id: (line.annotation.id, ast.literal_eval(line.value))
        for line in ast.parse(cell).body
    }


def test_parameters_cell_is_what_config_knows():
    cell = parameters_cell()
    defaults = Config().to_dict()
    assert list(cell) and set(cell) == set(defaults)
    for name, (kind, default) in cell.items():
        assert default == defaults[name], name
        assert type(default).__name__ == kind == type(defaults[name]).__name__, name


def test_from_notebook_takes_the_cell_and_nothing_else():
    names = {name: default for name, (_, default) in parameters_cell().items()}
    around = {"Path": Path, "_": 3, "In": [], "model": 1, "FER_CLASSES": ("Anger",), "__name__": "",
              "phases": {}}  # fmt: skip
    assert Config.from_notebook({**names, **around}) == Config()


def test_the_notebook_has_no_scalar_that_is_called_like_a_parameter():
    """Else its cell of settings could not be run a second time."""
    cells = SCRIPT.read_text(encoding="utf-8")
    assigned = {
        name.id
        for name in ast.walk(ast.parse(cells))
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and not name.id.isupper()
    }
    others = {"device", "phases", "photo"}  # a torch.device, a dictionary, a picture
    assert {name for name in assigned if name.lower() in Config.model_fields} == others


@pytest.mark.parametrize("name, value", [("BATCHSIZE", 8), ("AFFECTNET_DIR", Path("x")),
                                         ("BATCH_SIZE", [8]), ("SEED", None), ("LAYERS", [8]),
                                         ("fer_epochs", 20), ("Photo", "me.jpg")])  # fmt: skip
def test_from_notebook_refuses_what_papermill_would_let_pass(name, value):
    with pytest.raises(ConfigError, match=rf"The parameters cell has 1 .*\n  - {name} "):
        Config.from_notebook({name: value})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parameter_file_is_complete_and_valid(path):
    values = read_parameters(path)
    assert set(values) == set(Config().to_dict())
    config = Config.from_yaml(path)
    for name, value in config.to_dict().items():
        assert type(values[name]) is type(value), f"{name}: write it as {value!r}"


def test_every_parameter_file_is_there():
    wanted = {"kaggle", "local", "demo", "original", "cpu", "gpu"}
    assert wanted <= {path.stem for path in FILES}


def test_original_file_changes_no_recipe_value():
    changed = {
        name
        for name, value in Config.from_yaml(ROOT / "params" / "original.yaml").to_dict().items()
        if value != Config().to_dict()[name]
    }
    assert changed <= {"RUN_NAME"}


def test_defaults_hold_no_path_of_a_machine():
    for name, value in Config().to_dict().items():
        assert not (isinstance(value, str) and value.startswith(("/home", "C:", "~"))), name
        assert not str(value).startswith("/") or str(value).startswith("/kaggle/input/"), name


@pytest.mark.parametrize(
    "text, words",
    [("BATCH_SIZE: [", "not valid YAML"), ("- 1", "NAME: value"), ("", "NAME: value")],
)
def test_broken_parameter_file(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Config.from_yaml(path)


def test_a_parameter_file_in_another_encoding(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("RUN_NAME: caf\u00e9\n".encode("cp1252"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        Config.from_yaml(path)


def test_missing_parameter_file(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.yaml cannot be read: No such file"):
        Config.from_yaml(tmp_path / "x.yaml")


def test_yaml_with_lower_case_or_number_names(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("seed: 1\n3: 4\n")
    with pytest.raises(ConfigError, match=r"(?s)2 unusable.*did you mean SEED.*3 is not a"):
        Config.from_yaml(path)


def read_in(code):
    """Names that code takes from a config: `config.seed`, `SEED`, and tuples for `getattr`."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Attribute(value=ast.Name(id="config" | "self"), attr=name):
                names.add(name)
            case ast.Name(id=name) if name.isupper():
                names.add(name.lower())
            case ast.Tuple(elts=parts):
                names.update(part.value for part in parts if isinstance(part, ast.Constant))
    return names


def test_every_parameter_is_read():
    notebook = SCRIPT.read_text(encoding="utf-8").split('# %% tags=["parameters"]\n')[1]
    code = [notebook[notebook.index("# %%") :]]  # all that follows the cell of parameters
    for method in (Config.recipe, Config.model_kwargs, Config.augment_kwargs):
        code.append(textwrap.dedent(inspect.getsource(method)))
    known = set().union(Recipe.__dataclass_fields__, *map(read_in, code))
    assert set(Config.model_fields) - known == set()


def tips():
    """README's table of ideas: a row's parameters, and the values that it gives them in turn."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Tips\n")[1].split("\n## ")[0]
    for row in re.findall(r"^\| .* \| (.*) \|$", text, re.MULTILINE)[1:]:
        given = {}
        for quoted in re.findall(r"`([^`]+)`", row):
            if found := re.fullmatch(r"([A-Z][A-Z0-9_]+)(?: = (.+))?", quoted):
                values = given.setdefault(found[1], [])
                values += [ast.literal_eval(found[2])] if found[2] else []
            elif quoted.startswith('"'):  # another value of the parameter before it
                values.append(ast.literal_eval(quoted))
        yield given


def test_readmes_tips_are_parameters_and_values_that_go_together():
    rows = list(tips())
    assert len(rows) > 20 and sum(any(row.values()) for row in rows) > 10
    for row in rows:
        assert {name.lower() for name in row} <= set(Config.model_fields), row
        given = {name: values for name, values in row.items() if values}
        for chosen in itertools.product(*given.values()):
            Config.from_values(dict(zip(given, chosen, strict=True)), f"The row of {[*row]}")


# What others get


def test_to_dict_goes_through_yaml_unchanged(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(Config(seed=7, ema=0.9).to_dict()))
    assert Config.from_yaml(path) == Config(seed=7, ema=0.9)


def test_changed_is_checked_and_leaves_the_first_alone():
    config = Config()
    assert config.changed(seed=1).seed == 1 and config.seed == 42
    with pytest.raises(ConfigError, match="SEED"):
        config.changed(seed=-1)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_learned_votes_are_known_by_what_stands_in_them(tmp_path):
    table, copy = tmp_path / "votes.csv", tmp_path / "copy.csv"
    for path in (table, copy):
        path.write_text("a")

    def of(path, weight=0.5):
        return Config(ferplus_votes=str(path), ferplus_weight=weight).fingerprint()

    before = of(table)
    assert before == of(copy)
    table.write_text("b")
    assert before != of(table)
    assert of(table, 0.0) == of(copy, 0.0)  # only looked at afterwards


def test_weights_to_start_from_are_known_by_what_they_hold(tmp_path):
    def of(name, content):
        (tmp_path / name).write_bytes(content)
        return Config(pretrained=str(tmp_path / name)).fingerprint()

    assert of("a.pth", b"1") == of("b.pth", b"1") != of("a.pth", b"2")
    assert Config(pretrained="none").fingerprint()["PRETRAINED"] == "none"


def test_fingerprint_leaves_out_what_does_not_change_the_model():
    moved = {"output_dir": "else", "device": "cpu", "time_budget_minutes": 3.0, "tta_views": 1,
             "affectnet_dir": "a", "fer_detail_every": 1, "photo": "x.jpg",
             "ferplus_votes": "x.csv", "tensorboard": True, "compile": True}  # fmt: skip
    assert Config(**moved).fingerprint() == Config().fingerprint()
    changes = {"seed": 1, "precision": "fp32", "head_hidden": 0, "max_images": 9,
               "ferplus_weight": 0.5, "phases": "fer2013"}  # fmt: skip
    for name, value in changes.items():
        assert Config(**{**moved, name: value}).fingerprint() != Config().fingerprint(), name


@pytest.mark.parametrize("phases, idle, counts", [
    ("fer2013", {"affectnet_epochs": 1, "carry_head": True}, {"fer_epochs": 1}),
    ("affectnet", {"fer_epochs": 1, "ferplus_weight": 0.5, "ferplus_votes": "x.csv",
                   "carry_head": True}, {"affectnet_epochs": 1}),
    ("both", {}, {"carry_head": True}),
])  # fmt: skip
def test_fingerprint_leaves_out_the_phase_that_is_not_run(phases, idle, counts):
    base = Config(phases=phases).fingerprint()
    assert Config(phases=phases, **idle).fingerprint() == base
    assert Config(phases=phases, **counts).fingerprint() != base


def test_phases_look_closely_at_their_own_pace():
    recipes = Config().recipe("affectnet"), Config().recipe("fer2013")
    assert [recipe.detail_every for recipe in recipes] == [5, 3]


# What it stands on


def test_nothing_but_pydantic_and_yaml_is_needed_to_check_parameters():
    imported = {
        line.split()[1].split(".")[0]
        for line in Path(module.__file__).read_text(encoding="utf-8").splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - sys.stdlib_module_names == {"pydantic", "yaml"}
