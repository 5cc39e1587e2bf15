"""Typed parameters: the notebook's parameters cell or a YAML file becomes one frozen object.

The upper-case names of the notebook (`BATCH_SIZE`) are the lower-case fields here (`batch_size`).
Whatever is wrong with them is told at once, in one error, before any work starts.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

DRAWN = "drawn"
"""The value of the three data folders that asks for the embedded drawn faces."""

DATA_FOLDERS = ("affectnet_dir", "fer_train_dir", "fer_test_dir")

NO_EFFECT_ON_THE_MODEL = frozenset(
    # Where things lie, how long a session may take, and what is looked at after training.
    {
        *DATA_FOLDERS,
        "output_dir",
        "run_name",
        "cache_dir",
        "resume",
        "device",
        "compile",
        "max_bad_share",
        "near_twins",
        "ferplus_votes",
        "extra_test_dirs",
        "time_budget_minutes",
        "tensorboard",
        "affectnet_detail_every",
        "fer_detail_every",
        "tta_views",
        "bootstrap",
        "min_confidence",
        "robustness",
        "embedding",
        "photo",
        "gdown_id",
        "helpers_url",
    }
)


class ConfigError(ValueError):
    """One or more parameters are unusable; the message lists every one of them."""


@dataclass(frozen=True)
class Recipe:
    """How one phase is trained; `training.train_phase` reads nothing else.

    Learning rates are per optimizer step, `warmup`, `mix_until` and `grow_until` are fractions of
    the schedule in 0..1, `start_size` is in pixels (0: the final size from the first step on),
    `early_stop` counts epochs without a better selection score (0: never), `vote_weight` is what
    the loss of foretold votes counts beside the label's (0: votes are not learned).
    """

    epochs: int
    batch_size: int
    optimizer: str
    backbone_lr: float
    attention_lr: float
    head_lr: float
    weight_decay: float
    decay_norms: bool
    schedule: str
    warmup: float
    plateau_factor: float
    plateau_patience: int
    loss: str
    focal_gamma: float
    label_smoothing: float
    class_weights: str
    logit_adjustment: float
    vote_weight: float
    sampler: str
    mixup: float
    cutmix: float
    mix_probability: float
    mix_until: float
    start_size: int
    grow_until: float
    ema: float
    clip_norm: float
    early_stop: int
    keep: str
    detail_every: int


class Config(BaseModel):
    """Every parameter of the notebook, checked. Defaults are the original's recipe on Kaggle."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Data
    affectnet_dir: str = "/kaggle/input/balanced-affectnet"
    fer_train_dir: str = "/kaggle/input/fer2013/train"
    fer_test_dir: str = "/kaggle/input/fer2013/test"
    phases: Literal["both", "affectnet", "fer2013"] = "both"
    max_images: int = Field(0, ge=0)
    max_bad_share: float = Field(0.01, ge=0, lt=1)
    selection_size: int = Field(3000, ge=0)
    drop_test_twins: bool = False
    drop_conflicts: bool = False
    drop_blanks: bool = False
    near_twins: bool = True
    ferplus_votes: str = ""
    extra_test_dirs: str = ""
    # Run
    output_dir: str = Field("runs", pattern=r"\S")
    # Windows drops a dot at the end; one at the beginning would hide the run.
    run_name: str = Field("", pattern=r"^([\w -]([\w. -]*[\w-])?)?$")
    resume: str = Field("auto", pattern=r"\S")
    cache_dir: str = ""
    seed: int = Field(42, ge=0, lt=2**32)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    time_budget_minutes: float = Field(0.0, ge=0)
    tensorboard: bool = False
    # Input
    image_size: int = Field(224, ge=16, le=1024)
    input_channels: Literal[1, 3] = 3
    affectnet_grey: bool = False
    batch_size: int = Field(32, ge=2, le=65536)
    # Model
    backbone: Literal[
        "resnet18", "resnet34", "resnet50", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2",
        "efficientnet_v2_s", "convnext_tiny", "mobilenet_v3_large", "vit_b_16", "swin_t",
    ] = "resnet34"  # fmt: skip
    pretrained: str = Field("imagenet", pattern=r"\S")
    attention: Literal["none", "spatial", "channel", "se", "cbam"] = "spatial"
    attention_place: Literal["last", "each"] = "last"
    attention_safe_start: bool = False
    stem: Literal["imagenet", "small1", "small2"] = "imagenet"
    width: int = Field(64, ge=16, le=512)  # below 16 see MIN_WIDTH in models.py
    dropout: float = Field(0.4, ge=0, lt=1)
    head_hidden: int = Field(256, ge=0, le=8192)
    head_dropout: float = Field(0.3, ge=0, lt=1)
    carry_head: bool = False
    # Training
    affectnet_epochs: int = Field(15, ge=1)
    fer_epochs: int = Field(12, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    affectnet_lr: float = Field(1e-4, gt=0)
    fer_lr_backbone: float = Field(1e-5, ge=0)
    fer_lr_attention: float = Field(5e-5, ge=0)
    fer_lr_head: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    decay_norms: bool = True
    schedule: Literal["plateau", "cosine", "onecycle"] = "plateau"
    warmup: float = Field(0.0, ge=0, lt=1)
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=0)
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = Field(2.0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    class_weights: Literal["balanced", "effective", "none"] = "balanced"
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    logit_adjustment: float = Field(0.0, ge=0, le=4)
    ferplus_weight: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    mix_probability: float = Field(0.5, ge=0, le=1)
    mix_until: float = Field(1.0, ge=0, le=1)
    start_size: int = Field(0, ge=0, le=1024)
    grow_until: float = Field(0.6, ge=0, le=1)
    ema: float = Field(0.0, ge=0, lt=1)
    clip_norm: float = Field(0.0, ge=0)
    early_stop: int = Field(0, ge=0)
    keep: Literal["best", "last"] = "best"
    affectnet_detail_every: int = Field(5, ge=0)
    fer_detail_every: int = Field(3, ge=0)
    # Augmentation
    flip: float = Field(0.5, ge=0, le=1)
    affectnet_rotation: float = Field(8.0, ge=0, le=180)
    fer_rotation: float = Field(12.0, ge=0, le=180)
    affectnet_shift: float = Field(0.0, ge=0, le=1)
    fer_shift: float = Field(0.08, ge=0, le=1)
    scale: float = Field(0.0, ge=0, lt=1)
    affectnet_jitter: float = Field(0.15, ge=0, le=1)
    fer_jitter: float = Field(0.25, ge=0, le=1)
    affectnet_erase: float = Field(0.0, ge=0, le=1)
    fer_erase: float = Field(0.15, ge=0, le=1)
    erase_min: float = Field(0.02, gt=0, le=1)
    erase_max: float = Field(0.12, gt=0, le=1)
    padding: Literal["zeros", "reflection", "border"] = "zeros"
    augment_policy: Literal["none", "trivial"] = "none"
    # Evaluation, exploring, prediction
    tta_views: int = Field(10, ge=1, le=10)
    bootstrap: int = Field(10000, ge=0)
    min_confidence: float = Field(0.5, ge=0, le=1)
    robustness: bool = True
    embedding: bool = True
    photo: str = ""
    gdown_id: str = ""
    helpers_url: str = ""

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: Any) -> Any:
        # YAML 1.1 reads 1e-3 as text (it wants 1.0e-3), and so does papermill, which takes `-p
        # EMBEDDING false` for text too (it wants False).
        if info.field_name == "input_channels" and isinstance(value, bool | float):
            return repr(value)  # True equals 1, and 3.0 equals 3
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, str) and kind is float:
            try:
                return float(value)
            except ValueError:
                return value
        return value == "true" if kind is bool and value in ("true", "false") else value

    @model_validator(mode="after")
    def _values_fit_together(self) -> Config:
        problems = []
        drawn = [name for name in DATA_FOLDERS if getattr(self, name) == DRAWN]
        if drawn and len(drawn) < len(DATA_FOLDERS):
            problems.append(
                "drawn and real faces never meet in one run: set all of AFFECTNET_DIR, "
                "FER_TRAIN_DIR and FER_TEST_DIR to 'drawn', or none"
            )
        if self.erase_min > self.erase_max:
            problems.append(
                f"ERASE_MIN ({self.erase_min}) must not exceed ERASE_MAX ({self.erase_max})"
            )
        if self.start_size and not 16 <= self.start_size <= self.image_size:
            problems.append(
                f"START_SIZE ({self.start_size}) should be 0, or from 16 to IMAGE_SIZE "
                f"({self.image_size})"
            )
        smallest = min(self.image_size, self.start_size or self.image_size)
        if self.backbone == "convnext_tiny" and smallest < 32:
            problems.append(
                f"BACKBONE 'convnext_tiny' halves a picture five times, and {smallest} px are too "
                "few for that: set IMAGE_SIZE, and START_SIZE where it is not 0, to 32 or more"
            )
        if self.ferplus_weight and not self.ferplus_votes:
            problems.append(
                f"FERPLUS_WEIGHT ({self.ferplus_weight}) has no votes to learn: set FERPLUS_VOTES "
                "to the table of votes, or FERPLUS_WEIGHT to 0"
            )
        if self.sampler == "balanced" and self.class_weights != "none":
            problems.append(
                "SAMPLER 'balanced' shows every class equally often already: set CLASS_WEIGHTS to "
                "'none' with it"
            )
        if self.warmup and self.schedule == "plateau":
            problems.append("WARMUP needs SCHEDULE 'cosine' or 'onecycle': set it to 0 for plateau")
        if self.keep == "last" and self.early_stop:
            problems.append("EARLY_STOP chooses an epoch, so it needs KEEP 'best'")
        if 0 < self.bootstrap < 100:  # too few: their interval may leave out the score itself
            problems.append(f"BOOTSTRAP ({self.bootstrap}) should be 0, or 100 and more draws")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str) -> Config:
        """Check `values` (upper-case names).

        Raises:
            ConfigError: naming `source` and every unknown name, wrong type and value out of range.
        """
        fields = {str(name).lower(): value for name, value in values.items()}
        # papermill would take `batch_size` for another name than `BATCH_SIZE` and change nothing.
        lines = [
            _unknown(str(name)) for name in values if str(name).lower() in cls.model_fields
            and not str(name).isupper()
        ]  # fmt: skip
        gone: set[str] = set()
        while True:
            try:
                config = cls(**fields)
                break
            except ValidationError as error:
                # What does not fit together is only looked at once every single value is usable,
                # so look again without the unusable ones.
                problems = error.errors()
                found = [line for problem in problems for line in _explain(problem)]
                # What stands in for an unusable value was not asked for, so nothing is said of it.
                words = [set(re.findall(r"[A-Z][A-Z0-9_]+", line)) for line in found]
                lines += [line for line, names in zip(found, words, strict=True)
                          if gone.isdisjoint(names)]  # fmt: skip
                unusable = {problem["loc"][0] for problem in problems if problem["loc"]}
                if not unusable:
                    break
                gone |= {str(name).upper() for name in unusable}
                fields = {name: value for name, value in fields.items() if name not in unusable}
        if lines:
            raise ConfigError(
                f"{source} has {len(lines)} unusable parameter{'s' * (len(lines) > 1)}:\n"
                + "\n".join(f"  - {line}" for line in lines)
            )
        return config

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> Config:
        """Collect the parameters out of a notebook's `globals()`.

        Every upper-case scalar, list and dict counts as meant for us, and so does one in lower case
        that is spelled like a parameter: what papermill injects under such a name is refused
        instead of ignored. Other names in lower case are the notebook's own, so a misspelled one is
        not noticed.
        """

        def is_meant(name: str, value: Any) -> bool:
            known = name.lower() in cls.model_fields
            if isinstance(value, str | int | float | None):
                return known or bool(re.fullmatch(r"[A-Z][A-Z0-9_]+", name))
            return name.isupper() and (known or isinstance(value, list | dict))

        meant = {name: value for name, value in names.items() if is_meant(name, value)}
        return cls.from_values(meant, "The parameters cell")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a parameter file; names that it leaves out keep their defaults."""
        return cls.from_values(read_parameters(path), str(path))

    def changed(self, **values: Any) -> Config:
        """Return a checked copy with some fields (lower-case) replaced."""
        everything = {**self.model_dump(), **values}
        return Config.from_values({k.upper(): v for k, v in everything.items()}, "The change")

    def to_dict(self) -> dict[str, Any]:
        """All parameters under their notebook names, ready for `params.yaml`."""
        return {name.upper(): value for name, value in self.model_dump().items()}

    def fingerprint(self) -> dict[str, Any]:
        """The parameters that change the trained model; paths, budgets and figures do not.

        Neither do those of a phase that is not run. Votes that are learned and weights to start
        from are known by the SHA-256 of their file, wherever it lies.
        """
        idle = {
            "both": (),
            "affectnet": ("fer", "carry_head"),
            "fer2013": ("affectnet", "carry_head"),
        }[self.phases]
        known = {
            name.upper(): value
            for name, value in self.model_dump().items()
            if name not in NO_EFFECT_ON_THE_MODEL and not name.startswith(idle)
        }
        files = {}
        if self.pretrained not in ("none", "imagenet"):
            files["PRETRAINED"] = self.pretrained
        if self.ferplus_weight and self.phases != "affectnet":
            files["FERPLUS_VOTES"] = self.ferplus_votes
        for name, given in files.items():
            path = Path(os.path.expanduser(given))
            if path.is_file():
                known[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return known

    @property
    def drawn(self) -> bool:
        """Whether this run is on the embedded drawn faces."""
        return self.affectnet_dir == DRAWN

    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of `models.build_model`, except the number of classes."""
        same = (
            "backbone", "pretrained", "attention", "attention_place", "attention_safe_start",
            "stem", "width", "dropout", "head_hidden", "head_dropout",
        )  # fmt: skip
        return {name: getattr(self, name) for name in same} | {"channels": self.input_channels}

    def augment_kwargs(self, phase: Literal["affectnet", "fer2013"]) -> dict[str, Any]:
        """Arguments of `augment.Augment` for one phase."""
        first = phase == "affectnet"
        jitter = self.affectnet_jitter if first else self.fer_jitter
        return {
            "flip": self.flip,
            "rotation": self.affectnet_rotation if first else self.fer_rotation,
            "shift": self.affectnet_shift if first else self.fer_shift,
            "scale": self.scale,
            "brightness": jitter,
            "contrast": jitter,
            "erase": self.affectnet_erase if first else self.fer_erase,
            "erase_min": self.erase_min,
            "erase_max": self.erase_max,
            "padding": self.padding,
            "policy": self.augment_policy,
        }

    def recipe(self, phase: Literal["affectnet", "fer2013"]) -> Recipe:
        """How one phase is trained: phase 1 has one learning rate, phase 2 three, and votes."""
        first = phase == "affectnet"
        same = {
            name: getattr(self, name)
            for name in Recipe.__dataclass_fields__
            if name in Config.model_fields
        }
        return Recipe(
            epochs=self.affectnet_epochs if first else self.fer_epochs,
            backbone_lr=self.affectnet_lr if first else self.fer_lr_backbone,
            attention_lr=self.affectnet_lr if first else self.fer_lr_attention,
            head_lr=self.affectnet_lr if first else self.fer_lr_head,
            vote_weight=0.0 if first else self.ferplus_weight,
            detail_every=self.affectnet_detail_every if first else self.fer_detail_every,
            **same,
        )


PATTERNS = {
    "run_name": "letters, digits, spaces, dots, - and _, without a dot at the start or the end or "
    "a space at the end",
    "output_dir": "a folder",
    "resume": "'auto', 'never' or a run folder",
    "pretrained": "'imagenet', 'none' or a file of weights",
    "device": "'auto', 'cpu', 'mps', 'cuda' or 'cuda:1'",
}
"""What the patterns above mean, in words."""


def _explain(problem: Mapping[str, Any]) -> list[str]:
    """One of pydantic's findings in the words of the notebook, a line for each thing wrong."""
    if not problem["loc"]:
        return problem["msg"].removeprefix("Value error, ").splitlines()
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return [_unknown(name.upper())]
    wanted = problem["msg"].removeprefix("Input should be ")
    if problem["type"] == "string_pattern_mismatch":
        wanted = PATTERNS[name]
    elif problem["type"] == "string_type":
        wanted = "text (quoted in a file, -r instead of -p for papermill)"
    return [f"{name.upper()} should be {wanted}, not {problem['input']!r}"]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), Config.model_fields, n=1)
    return f"{name} is not a parameter" + (f"; did you mean {close[0].upper()}?" if close else "")


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of upper-case parameters.

    Raises:
        ConfigError: the file is missing, is no valid YAML, or holds no `NAME: value` lines.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The parameter file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"The parameter file {path} is not UTF-8 text: save it as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"The parameter file {path} is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The parameter file {path} should hold lines of the form NAME: value.")
    return values
