"""Where the data are: what a run does when its folders are there, elsewhere or nowhere."""

from pathlib import Path

import pytest

from fer_helpers import data_folders
from fer_helpers.config import DATA_FOLDERS, Config, ConfigError
from fer_helpers.data import load_affectnet
from fer_helpers.data_folders import settle_data
from fer_helpers.models import build_model
from tests.faces_on_disk import write_affectnet, write_fer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def away(monkeypatch, tmp_path):
    """Not on Kaggle, in an empty folder, with default paths that do not exist."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def on_kaggle(away, monkeypatch):
    """On Kaggle; its input folder stands in a temporary one."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    inputs = away / "kaggle" / "input"
    inputs.mkdir(parents=True)
    return inputs


def at(folder, **changes):
    """The default paths, with another place for Kaggle's inputs."""
    return Config(
        affectnet_dir=str(folder / "balanced-affectnet"),
        fer_train_dir=str(folder / "fer2013" / "train"),
        fer_test_dir=str(folder / "fer2013" / "test"),
        **changes,
    )


def test_no_data_anywhere_means_drawn_faces_and_says_what_changed(away):
    config, banner = settle_data(Config(seed=7, affectnet_epochs=3, tta_views=2))
    demo = Config.from_yaml(ROOT / "params" / "demo.yaml")
    assert config.drawn
    assert (config.seed, config.affectnet_epochs, config.tta_views) == (7, 3, 2)  # set by the user
    assert (config.image_size, config.optimizer) == (demo.image_size, demo.optimizer)
    assert "DRAWN" in banner
    defaults = Config().to_dict()
    for name, value in config.to_dict().items():
        was = {**defaults, "SEED": 7, "AFFECTNET_EPOCHS": 3, "TTA_VIEWS": 2}[name]
        assert (f"{name}: {was!r} -> {value!r}" in banner) == (value != was), name


def test_what_was_set_fits_the_demo(away):
    config, banner = settle_data(Config(backbone="efficientnet_b0", start_size=128))
    build_model(2, **config.model_kwargs())
    assert config.backbone == "efficientnet_b0" and "START_SIZE: 128 -> 0" in banner
    assert settle_data(Config(start_size=32))[0].start_size == 32


def test_the_banner_comes_before_anything_is_refused():
    script = (ROOT / "notebooks" / "Facial Emotion Recognition.py").read_text(encoding="utf-8")
    assert script.index("print(banner") < script.index("build_model(2, **")


def test_no_data_and_no_demo_file(away, monkeypatch):
    monkeypatch.setattr(data_folders, "DEMO_FILE", away / "demo.yaml")
    with pytest.raises(ConfigError, match=r"set AFFECTNET_DIR, .* all three to 'drawn'"):
        settle_data(Config())


def test_drawn_faces_asked_for(away):
    asked = Config(**dict.fromkeys(DATA_FOLDERS, "drawn"))
    config, banner = settle_data(asked)
    assert config == asked
    assert "Drawn faces" in banner


def test_data_in_place_changes_nothing(away):
    write_affectnet(away / "balanced-affectnet", per_class=1)
    write_fer(away / "fer2013", train=1, public=1, private=1)
    assert settle_data(at(away)) == (at(away), "")


def test_missing_data_on_kaggle_names_what_to_attach(on_kaggle, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        settle_data(Config())
    assert "dollyprajapati182/balanced-affectnet and msambare/fer2013" in str(caught.value)
    assert "Add Input" in str(caught.value) and "'drawn'" in str(caught.value)
    attached = on_kaggle / "datasets" / "somebody" / "faces"
    attached.mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:  # a path of one's own is named, not Kaggle's default
        settle_data(Config(phases="affectnet", affectnet_dir=str(attached / "affectnett")))
    assert str(attached) in str(caught.value) and "Add Input" not in str(caught.value)


def test_second_form_of_kaggle_mounts_counts_as_present(on_kaggle):
    owners = on_kaggle / "datasets"
    write_affectnet(owners / "dollyprajapati182" / "balanced-affectnet", per_class=1)
    write_fer(owners / "msambare" / "fer2013", train=1, public=1, private=1)
    config, banner = settle_data(at(on_kaggle))
    assert (config, banner) == (at(on_kaggle), "")
    # and what counts as present is found
    assert len(load_affectnet(config.affectnet_dir, cache_dir=on_kaggle, selection_size=2).train)


def test_wrong_dataset_under_the_right_name_is_missing(on_kaggle):
    (on_kaggle / "datasets" / "somebody" / "balanced-affectnet").mkdir(parents=True)
    with pytest.raises(ConfigError, match="AFFECTNET_DIR"):
        settle_data(at(on_kaggle))


@pytest.mark.parametrize("there, missing, offer", [
    ("fer2013", "AFFECTNET_DIR", "PHASES 'fer2013'"),
    ("affectnet", "FER_TRAIN_DIR", "PHASES 'affectnet'"),
])  # fmt: skip
def test_one_of_two_datasets_offers_the_other_phase(away, there, missing, offer):
    if there == "fer2013":
        write_fer(away / "fer2013", train=1, public=1, private=1)
    else:
        write_affectnet(away / "balanced-affectnet", per_class=1)
    with pytest.raises(ConfigError) as caught:
        settle_data(at(away))
    assert str(caught.value).startswith(missing)
    assert offer in str(caught.value)
    assert settle_data(at(away, phases=there))[1] == ""  # and the offer works


def test_half_of_fer2013_offers_phase_one(away):
    write_affectnet(away / "balanced-affectnet", per_class=1)
    write_fer(away / "fer2013", train=1, public=1, private=1)
    (away / "fer2013" / "test").rename(away / "fer2013" / "tset")
    with pytest.raises(ConfigError, match=r"^FER_TEST_DIR .* does not exist.*PHASES 'affectnet'"):
        settle_data(at(away))


def test_set_path_that_is_missing_names_the_nearest_that_exists(away):
    (away / "data").mkdir()
    config = Config(affectnet_dir=str(away / "data" / "affectnett" / "x"), phases="affectnet")
    with pytest.raises(ConfigError) as caught:
        settle_data(config)
    assert "AFFECTNET_DIR" in str(caught.value)
    assert f"exists is {away / 'data'}" in str(caught.value)
    assert "PHASES" not in str(caught.value)


def test_a_home_folder_of_nobody_is_a_missing_path(away):
    with pytest.raises(ConfigError, match="~nobody-of-this-name/faces"):
        settle_data(Config(affectnet_dir="~nobody-of-this-name/faces"))


def test_set_path_never_falls_back_to_drawn_faces(away):
    with pytest.raises(ConfigError, match="FER_TEST_DIR"):
        settle_data(Config(fer_test_dir="elsewhere"))
