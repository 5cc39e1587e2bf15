"""Pretrained weights: the real loading code, fed with a small made-up file over loopback."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_faces import server  # noqa: F401 (a fixture)
from torchvision.models import ResNet34_Weights, get_model, get_model_weights

from fer_helpers import mounts, pretrained
from fer_helpers.models import BACKBONES, build_model, describe
from fer_helpers.pretrained import WeightsError


def constant_state(backbone, value=0.5):
    """Every tensor of a torchvision net as one stored number: 85 MB become a few kilobytes."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in get_model(backbone).state_dict().items()}
    return {name: torch.full((1,) * len(s), value).expand(s) for name, s in shapes.items()}


def write(folder, name, state, save=torch.save):
    """Write under torchvision's naming: NAME-<first digits of the SHA-256>.pth."""
    path = Path(folder, f"{name}.pth")
    save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_stem(f"{name}-{digest[:8]}"))


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    """An empty torch cache, no Kaggle inputs, no network: nothing leaves the machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path / "input")
    point_to(monkeypatch, "http://127.0.0.1:9/resnet34-b627a593.pth")


def point_to(monkeypatch, url):
    monkeypatch.setattr(ResNet34_Weights.DEFAULT.value, "url", url)


def test_imagenet_weights_are_downloaded_checked_and_cached(server, monkeypatch, tmp_path):  # noqa: F811
    path = write(tmp_path, "resnet34", constant_state("resnet34"))
    assert path.stat().st_size < 200_000
    server.answers[f"/{path.name}"] = 200, {}, path.read_bytes()
    point_to(monkeypatch, f"{server.url}/{path.name}")
    for _ in range(2):
        model = build_model(8, pretrained="imagenet")
        assert (model.backbone.conv1.weight == 0.5).all()
        assert (model.backbone.layer4[2].bn2.running_var == 0.5).all()
        assert not (model.head[1].weight == 0.5).any()
    assert len(server.requests) == 1
    assert describe(model).endswith(f"; backbone from {path.name}")
    assert model.architecture["pretrained"] == "none"  # a checkpoint needs no download to rebuild


@pytest.mark.parametrize(
    "headers, words",
    [({}, "invalid hash"), ({"Transfer-Encoding": "chunked"}, "downloaded from .*IncompleteRead")],
)
def test_a_broken_download_is_refused_and_not_kept(server, monkeypatch, tmp_path, headers, words):  # noqa: F811
    server.answers["/resnet34-0badf00d.pth"] = 200, headers, b"9\r\nhalf"
    point_to(monkeypatch, f"{server.url}/resnet34-0badf00d.pth")
    with pytest.raises(WeightsError, match=words):
        build_model(8, pretrained="imagenet")
    assert not list((tmp_path / "torch").rglob("*.pth*"))


def test_offline_says_the_ways_out(monkeypatch):
    with pytest.raises(WeightsError) as caught:
        build_model(8, pretrained="imagenet")
    text = str(caught.value)
    for way in ("internet on", "attach", "local copy", "PRETRAINED=none", "resnet34-b627a593.pth"):
        assert way in text
    assert "\n" not in text


def test_a_damaged_cached_file_is_named(tmp_path):
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(WeightsError, match=r"damaged.*delete it"):
        build_model(8, pretrained="imagenet")


@pytest.mark.parametrize("mount", ["resnet34-weights", "datasets/someone/weights/pytorch/1"])
def test_a_file_attached_on_kaggle_is_found_without_walking_the_pictures(tmp_path, mount):
    folder = tmp_path / "input" / mount
    pictures = tmp_path / "input" / "fer2013" / "train"
    for place in (folder, pictures):
        place.mkdir(parents=True)
    (pictures / "resnet34.pth").write_bytes(b"")
    for other in ("resnet343.pth", "resnet34_best.pth", "resnet34-mine.safetensors"):
        (folder / other).write_bytes(b"")
    assert pretrained._attached("resnet34") is None
    path = write(folder, "resnet34", constant_state("resnet34"))
    assert path.name in describe(build_model(8, pretrained="imagenet"))


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", "convnext_tiny"])
def test_a_local_file_fits_the_other_backbones(tmp_path, backbone):
    path = write(tmp_path, backbone, constant_state(backbone))
    model = build_model(7, backbone=backbone, pretrained=str(path))
    assert all((t == 0.5).all() for n, t in model.backbone.state_dict().items() if "num_" not in n)
    assert all((t == 0.5).all() for t in model.norm.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_b0", "efficientnet_v2_s", "vit_b_16", "swin_t"])
def test_a_local_file_fits_the_remaining_kinds(tmp_path, backbone):
    path = write(tmp_path, backbone, constant_state(backbone))
    attention = "none" if backbone in ("vit_b_16", "swin_t") else "spatial"
    model = build_model(7, backbone=backbone, attention=attention, pretrained=str(path))
    assert next(model.backbone.parameters()).eq(0.5).all()


def test_grey_sums_the_first_filters_and_a_small_stem_stays_random(tmp_path):
    path = write(tmp_path, "resnet18", constant_state("resnet18"))
    settings = {"backbone": "resnet18", "pretrained": str(path), "channels": 1}
    grey = build_model(7, **settings)
    assert (grey.backbone.conv1.weight == 1.5).all()
    small = build_model(7, stem="small2", **settings)
    assert small.backbone.conv1.weight.std() > 0
    assert (small.backbone.bn1.weight == 1).all()
    assert (small.backbone.layer1[0].conv1.weight == 0.5).all()
    assert "stem random" in describe(small) and "random" not in describe(grey)


def test_a_checkpoint_of_this_project_starts_another_net(tmp_path):
    settings = {"backbone": "resnet18", "width": 16, "stem": "small2"}
    trained = build_model(8, attention="cbam", **settings)
    save_file(trained.state_dict(), tmp_path / "best.safetensors")
    model = build_model(7, pretrained=str(tmp_path / "best.safetensors"), **settings)
    assert torch.equal(model.backbone.conv1.weight, trained.backbone.conv1.weight)
    assert torch.equal(model.backbone.bn1.running_var, trained.backbone.bn1.running_var)


def test_old_files_without_batch_counters_load(tmp_path):
    state = {k: v for k, v in constant_state("resnet18").items() if "num_batches" not in k}
    path = write(tmp_path, "resnet18", state)
    model = build_model(7, backbone="resnet18", pretrained=str(path))
    assert model.backbone.bn1.num_batches_tracked == 0


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (constant_state("resnet18"), "does not fit this resnet34"),
        ({"model": Evil()}, "cannot be read"),
        ([1, 2], "something other than named tensors"),
        ({0: torch.zeros(1)}, "something other than named tensors"),
        ({"fc.bias": torch.tensor([0.0, float("nan")])}, "NaN or infinity in fc.bias"),
    ],
)
def test_foreign_files_are_refused_in_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=words) as caught:
        build_model(8, pretrained=str(path))
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_another_width_and_a_missing_file_are_refused(tmp_path):
    path = write(tmp_path, "resnet18", constant_state("resnet18"))
    with pytest.raises(WeightsError, match="of another shape"):
        build_model(8, backbone="resnet18", width=32, pretrained=str(path))
    for name in ("no-such-file.pth", str(tmp_path)):
        with pytest.raises(WeightsError, match=r"is no file.*model\.safetensors"):
            build_model(8, pretrained=name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchvisions_files_promise_a_hash(backbone):
    name = get_model_weights(backbone).DEFAULT.url.rsplit("/", 1)[-1]
    if backbone == "resnet34":
        name = "resnet34-b627a593.pth"  # the fixture above points elsewhere
    assert pretrained._promised_hash(Path(name), backbone) == name[-12:-4]


@pytest.mark.parametrize(
    "name",
    [
        "my-resnet34.pth", "resnet34-20260131.pth", "resnet34-1732612345.pth",
        "student-204bbdb6135e.safetensors", "best-3f2a1b4c.pth", "resnet34-b627a593.safetensors",
    ],
)  # fmt: skip
def test_other_files_promise_no_hash(name):
    assert pretrained._promised_hash(Path(name), "resnet34") is None
