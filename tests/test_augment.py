"""Invariants of the fused augmentation, and its distribution against torchvision's transforms."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import betainc
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as one_by_one

from fer_helpers.augment import (
    CACHED_PIXELS,
    Augment,
    backward,
    boxes,
    erase,
    jitter,
    kept_inside,
    mix,
    resample,
    trivial,
)
from fer_helpers.preprocess import Preprocess
from tests.tiny import one_thread  # noqa: F401 (a fixture of every test here)

# The original notebook's two recipes (section 2 of its description).
AFFECTNET = Augment(flip=0.5, rotation=8, brightness=0.15, contrast=0.15)
FER = Augment(flip=0.5, rotation=12, shift=0.08, brightness=0.25, contrast=0.25, erase=0.15)
RAW = {"mean": (0.0,), "std": (1 / 255,), "channels": 1}  # inputs are pixels in 0..255


def faces(count, side=48, channels=1, seed=0):
    """Smooth pictures as uint8 (N, C, H, W), with no symmetry and no even border."""
    coarse = np.random.default_rng(seed).integers(30, 226, (count, 6, 6, channels), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(c.squeeze()).resize((side, side), Image.Resampling.BICUBIC))
        for c in coarse
    ]
    return torch.from_numpy(np.stack(smooth).reshape(count, side, side, channels)).permute(
        0, 3, 1, 2
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def warp(pixels, size=None, *, flip=False, angle=0.0, scale=1.0, shift=(0.0, 0.0), padding="zeros"):
    count = len(pixels)
    steps = backward(
        torch.full((count,), flip),
        torch.full((count,), float(angle)),
        torch.full((count,), float(scale)),
        torch.tensor([shift] * count, dtype=torch.float32),
    )
    return resample(pixels.float(), steps, size or pixels.shape[-1], padding)


def close(a, b, within=0.01):
    torch.testing.assert_close(a, b.float(), rtol=0, atol=within)


# ------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize("padding", ["zeros", "reflection", "border"])
def test_moves_that_need_no_interpolation(padding):
    images = faces(3)
    close(warp(images, padding=padding), images)
    close(warp(images, flip=True, padding=padding), images.flip(3))
    close(warp(warp(images, flip=True, padding=padding), flip=True, padding=padding), images)
    for quarter in (1, 2, 3):
        turned = warp(images, angle=90 * quarter, padding=padding)
        close(turned, images.rot90(quarter, (2, 3)))
    moved = warp(images, shift=(5 / 48, -3 / 48), padding=padding)
    close(moved[:, :, :-3, 5:], images[:, :, 3:, :-5])


def test_what_comes_in_from_outside():
    images = faces(2)
    moved = {
        p: warp(images, shift=(5 / 48, 0), padding=p) for p in ("zeros", "reflection", "border")
    }
    close(moved["zeros"][..., :5], torch.zeros(2, 1, 48, 5))
    close(moved["reflection"][..., :5], images[..., :5].flip(3))
    close(moved["border"][..., :5], images[..., :1].expand(2, 1, 48, 5))


@pytest.mark.parametrize("size", [48, 96, 224])
@pytest.mark.parametrize(
    "values",
    [
        {"angle": 8},
        {"angle": -30, "flip": True},
        {"angle": 12, "shift": (4, -2)},
        {"angle": 170, "scale": 0.8, "shift": (-3, 5), "flip": True},
        {"scale": 1.3},
        {"flip": True},
    ],
)
def test_the_same_as_torchvision_step_by_step(size, values):
    images = faces(4, channels=3)
    flip, angle, scale, shift = (
        values.get(name, default)
        for name, default in (("flip", False), ("angle", 0), ("scale", 1.0), ("shift", (0, 0)))
    )
    steps = one_by_one.resize(images.float(), [size, size], antialias=False)
    steps = one_by_one.horizontal_flip(steps) if flip else steps
    steps = one_by_one.affine(
        steps,
        angle=-angle,
        translate=list(shift),
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    once = warp(
        images, size, flip=flip, angle=angle, scale=scale, shift=(shift[0] / size, shift[1] / size)
    )
    difference = (once - steps).abs()
    assert difference.mean() < (0.01 if size == 48 else 1.0)  # of 255
    if size == 48:
        assert difference.max() < 0.05
    # No dark frame: where a picture is only enlarged, its border is as bright as resized.
    if values == {"flip": True}:
        assert difference.max() < 0.05


def test_pictures_that_are_not_square_are_squeezed_first():
    image = faces(1, side=60)[..., :30]
    turned = warp(image, 40, angle=90, padding="border")
    squeezed = one_by_one.resize(image.float(), [40, 40], antialias=False)
    assert (turned - squeezed.rot90(1, (2, 3))).abs().mean() < 1


def test_a_large_picture_is_reduced_before_it_is_sampled():
    fine = torch.zeros(1, 1, 224, 224, dtype=torch.uint8)
    fine[..., ::2] = 255  # stripes of one pixel: grey, from far away
    inputs = Augment(rotation=5, padding="border")(fine, Preprocess(size=48, **RAW), seeded())
    assert inputs.std() < 3 and abs(inputs.mean() - 127.5) < 1


# ------------------------------------------------------------------------------- nothing on
@pytest.mark.parametrize("size", [48, 64, 20])
@pytest.mark.parametrize(
    "settings", [{}, {"channels": 1}, {"grey": True}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}]
)
def test_everything_off_is_exactly_preprocess(size, settings):
    preprocess = Preprocess(size=size, **settings)
    for channels in (1, 3):
        images = faces(5, channels=channels)
        assert torch.equal(Augment()(images, preprocess, seeded()), preprocess(images))
    if size == 48:
        shown = preprocess.undo(Augment()(images, preprocess, seeded()))
        assert np.array_equal(shown, preprocess.undo(preprocess(images)))


def test_flipping_alone_moves_pixels_and_changes_none():
    images = faces(64)
    preprocess = Preprocess(size=48, **RAW)
    flipped = Augment(flip=0.5)(images, preprocess, seeded())
    same = (flipped == preprocess(images)).all((1, 2, 3))
    mirrored = (flipped == preprocess(images).flip(3)).all((1, 2, 3))
    assert (same | mirrored).all() and 15 < mirrored.sum() < 49
    assert torch.equal(Augment(flip=1)(images, preprocess, seeded()), preprocess(images).flip(3))


def test_images_stay_as_they_were():
    images = faces(4, channels=3)
    before = images.clone()
    for recipe in (AFFECTNET, FER, Augment(brightness=0.5), Augment(policy="trivial")):
        recipe(images, Preprocess(size=48), seeded())
    assert torch.equal(images, before)


# ------------------------------------------------------------------------------- randomness
@pytest.mark.parametrize("recipe", [AFFECTNET, FER, Augment(policy="trivial", flip=0.5)])
def test_one_generator_decides_everything(recipe):
    images, preprocess = faces(12, channels=3), Preprocess(size=32)
    torch.manual_seed(1)
    first = recipe(images, preprocess, seeded(5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(recipe(images, preprocess, seeded(5)), first)
    assert not torch.equal(recipe(images, preprocess, seeded(6)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    generator = seeded(5)
    recipe(images, preprocess, generator)
    assert not torch.equal(recipe(images, preprocess, generator), first), (
        "every batch is drawn anew"
    )


def test_images_do_not_depend_on_their_batch_being_worked_in_steps(monkeypatch):
    images, preprocess = faces(40), Preprocess(size=32, channels=1)
    expected = FER(images, preprocess, seeded())
    for pixels in (1, 32 * 32 * 7, CACHED_PIXELS * 100):
        monkeypatch.setattr("fer_helpers.augment.CACHED_PIXELS", pixels)
        close(FER(images, preprocess, seeded()), expected, 1e-5)


def test_switching_one_thing_off_leaves_the_others():
    images, preprocess = faces(16), Preprocess(size=48, **RAW)
    both = Augment(flip=0.5, brightness=0.3)(images, preprocess, seeded())
    flips = Augment(flip=0.5)(images, preprocess, seeded())
    ratio = both.mean((1, 2, 3)) / flips.mean((1, 2, 3))
    mirrored = (both - flips * ratio[:, None, None, None]).abs().mean((1, 2, 3))
    assert mirrored.max() < 4  # only clipping differs


def test_every_strength_has_a_random_number_of_its_own(monkeypatch):
    drawn = {}
    for function in (backward, boxes, jitter):

        def watched(*given, function=function, **named):
            drawn.update(inspect.signature(function).bind(*given, **named).arguments)
            return function(*given, **named)

        monkeypatch.setattr(f"fer_helpers.augment.{function.__name__}", watched)
    recipe = Augment(
        flip=0.5, rotation=9, shift=0.1, scale=0.2, brightness=0.3, contrast=0.3, erase=0.5
    )
    recipe(torch.zeros(2000, 1, 8, 8, dtype=torch.uint8), Preprocess(size=8, **RAW), seeded())
    erased, ratio = drawn["area"] > 0, drawn["ratio"].log()
    names = ("flip", "angle", "scale", "brightness", "contrast")
    values = [*(drawn[name] for name in names), *drawn["shift"].T, *drawn["place"].T, ratio, erased]
    together = torch.stack([column.float() for column in values]).corrcoef()
    of_holes = torch.stack([column[erased].float() for column in [*values[:-1], drawn["area"]]])
    for found in (together, of_holes.corrcoef()):
        assert (found - torch.eye(len(found))).abs().max() < 0.12
    area = drawn["area"][erased]
    assert area.mean() == pytest.approx(0.07, abs=0.004)
    assert 0.02 <= area.min() < 0.022 and 0.118 < area.max() <= 0.12
    assert [-ratio.min(), ratio.max()] == pytest.approx([math.log(3.3)] * 2, abs=0.02)


def test_color_and_grey_come_out_as_the_model_takes_them():
    grey, color = faces(6), faces(6, channels=3)
    for recipe in (AFFECTNET, FER):
        three = recipe(grey, Preprocess(size=40), seeded())
        assert three.shape == (6, 3, 40, 40) and three.dtype == torch.float32
        shown = Preprocess().undo(three).astype(int)
        alike = (np.abs(shown - shown[..., :1]) <= 1).all(axis=-1)
        assert alike.mean() > 0.85  # erased boxes are the mean color, which is not grey
        assert recipe(color, Preprocess(size=40, channels=1), seeded()).shape == (6, 1, 40, 40)
    # Turned grey before anything else, like a set that was stored grey.
    luma = Preprocess(grey=True).to_grey(color)
    sees_grey = Preprocess(size=40, grey=True)
    assert torch.equal(FER(color, sees_grey, seeded()), FER(luma, sees_grey, seeded()))


# ------------------------------------------------------------------------------- light, holes
def test_jitter_is_torchvisions():
    for channels in (1, 3):
        images = faces(5, channels=channels)
        brightness = torch.tensor([0.6, 1.0, 1.4, 1.0, 0.8])
        contrast = torch.tensor([1.0, 0.5, 1.0, 1.5, 1.3])
        result = jitter(images.float(), brightness, contrast)
        for image, b, c, got in zip(images, brightness, contrast, result, strict=True):
            expected = one_by_one.adjust_brightness(image.float() / 255, b.item())
            expected = one_by_one.adjust_contrast(expected, c.item()) * 255
            assert (got - expected).abs().max() < 0.02


def test_boxes_are_random_erasings():
    count, side = 4000, 48
    draws = torch.rand(count, 4, generator=seeded())
    ratio = torch.exp((2 * draws[:, 1] - 1) * np.log(3.3))
    area = 0.02 + 0.10 * draws[:, 0]
    top, bottom, left, right = boxes(area, ratio, draws[:, 2:], side).unbind(1)
    assert (
        (top >= 0).all() and (left >= 0).all() and (bottom <= side).all() and (right <= side).all()
    )
    ours = torch.stack([bottom - top, right - left, top, left], dim=1)
    torch.manual_seed(0)
    get = v2.RandomErasing(p=1, scale=(0.02, 0.12)).make_params
    blank = torch.zeros(1, side, side)
    theirs = torch.tensor(
        [[p["h"], p["w"], p["i"], p["j"]] for p in (get([blank]) for _ in range(count))]
    ).float()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.6
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.5


def test_erasing():
    inputs = torch.ones(3, 2, 10, 10)
    erase(inputs, torch.tensor([[0, 0, 0, 0], [2, 5, 4, 6], [0, 10, 0, 10]]).float())
    assert inputs[0].sum() == 200 and inputs[1].sum() == 200 - 12 and inputs[2].sum() == 0
    assert (inputs[1, :, 2:5, 4:6] == 0).all()
    recipe = Augment(erase=0.15, erase_min=0.1, erase_max=0.1)
    bright = torch.full((2000, 1, 16, 16), 255, dtype=torch.uint8)
    holes = (recipe(bright, Preprocess(size=16, channels=1), seeded()) == 0).float().mean((1, 2, 3))
    assert 0.12 < (holes > 0).float().mean() < 0.18
    assert 0.08 < holes[holes > 0].mean() < 0.12
    whole = Augment(erase=1, erase_min=1, erase_max=1)(bright, Preprocess(size=16), seeded())
    assert whole.shape == (2000, 3, 16, 16)


def torchvision_way(recipe, preprocess):
    """The same recipe as a chain of torchvision's transforms, in float.

    In bytes, jitter rounds down twice, which costs 1/255 of brightness. Turned first and shifted
    later, as in the original, a picture loses what the turn pushed over its edge.
    """
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize((preprocess.size, preprocess.size), antialias=True),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandomAffine(
                recipe.rotation,
                translate=(recipe.shift, recipe.shift),
                scale=(1 - recipe.scale, 1 + recipe.scale),
                interpolation=InterpolationMode.BILINEAR,
                fill=None,  # the default, 0, darkens the faded edge a second time
            ),
            v2.ColorJitter(brightness=recipe.brightness, contrast=recipe.contrast),
            v2.Normalize(preprocess.mean, preprocess.std),
            v2.RandomErasing(recipe.erase, scale=(recipe.erase_min, recipe.erase_max)),
        ]
    )


@pytest.mark.parametrize(
    "recipe, size",
    [(AFFECTNET, 24), (FER, 24), (dataclasses.replace(FER, scale=0.2), 48)],
    ids=["AffectNet", "FER2013", "FER2013, scaled and enlarged"],
)
def test_the_distribution_is_torchvisions(recipe, size):
    face = faces(1, side=24, seed=3)
    many, few = 2000, 300
    preprocess = Preprocess(size=size, channels=1)
    ours = recipe(face.expand(many, 1, 24, 24), preprocess, seeded())
    torch.manual_seed(0)
    chain = torchvision_way(recipe, preprocess)
    theirs = torch.stack([chain(face[0]) for _ in range(few)])
    # Every pixel over many draws: the means of two samples differ by 0.062 sd, and pixels agree in
    # that, because a flip or a brighter picture moves them together.
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)) / spread).abs().mean() < 0.15
    assert (ours.std(0) / spread - 1).abs().mean() < 0.1
    # Brightness and contrast of whole pictures.
    for number in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3))):
        a, b = number(ours), number(theirs)
        assert abs(a.mean() - b.mean()) < 0.17 * b.std()
        assert abs(a.std() / b.std() - 1) < 0.12
        quantiles = torch.linspace(0.05, 0.95, 10)
        assert (a.quantile(quantiles) - b.quantile(quantiles)).abs().max() < 0.3 * b.std()


def test_the_originals_recipes_are_the_configs_defaults():
    from fer_helpers.config import Config

    assert Augment(**Config().augment_kwargs("affectnet")) == AFFECTNET
    assert Augment(**Config().augment_kwargs("fer2013")) == FER


def test_trivial_augment_is_torchvisions():
    for channels in (1, 3):
        images = faces(6, channels=channels)
        ours = trivial(images, seeded(4))
        seed = torch.randint(2**62, (), generator=seeded(4)).item()
        policy = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            assert torch.equal(ours, torch.stack([policy(image) for image in images]))
        assert not torch.equal(ours, images)
    recipe = Augment(policy="trivial", rotation=5)
    assert recipe(images, Preprocess(size=64), seeded()).shape == (6, 3, 64, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"rotation": -1},
        {"rotation": 200},
        {"scale": 1},
        {"erase_min": 0.3},
        {"erase_max": 2},
        {"padding": "mirror"},
        {"policy": "auto"},
        {"brightness": float("nan")},
    ],
)
def test_impossible_strengths(wrong):
    with pytest.raises(ValueError, match="give"):
        Augment(**wrong)


def test_an_empty_batch():
    images = torch.zeros(0, 1, 48, 48, dtype=torch.uint8)
    assert FER(images, Preprocess(size=48), seeded()).shape == (0, 3, 48, 48)


# ------------------------------------------------------------------------------- mix
@pytest.mark.parametrize("mixup, cutmix", [(0.2, 0), (1, 0), (0, 1), (0.4, 1)])
def test_mixed_targets_are_what_is_in_the_picture(mixup, cutmix):
    labels = torch.arange(8) % 5
    # Each picture is evenly its own number, so the mean of a mixture tells the shares.
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 40, 30).contiguous()
    before = images.clone()
    generator = seeded()
    for _ in range(40):
        mixed, targets = mix(
            images, F.one_hot(labels, 5).float(),
            mixup=mixup, cutmix=cutmix, probability=1, generator=generator,
        )  # fmt: skip
        assert targets.shape == (8, 5) and targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        own = targets[torch.arange(8), labels]
        neighbor = torch.arange(8).roll(1)
        expected = own * torch.arange(8) + (1 - own) * neighbor
        different = labels != labels.roll(1)
        torch.testing.assert_close(mixed.mean((1, 2, 3))[different], expected[different])
    assert torch.equal(images, before)


def test_mixing_shares_follow_the_beta_distribution():
    images, whole = torch.zeros(2, 1, 4, 4), torch.eye(2)
    generator = seeded()
    shares = []
    for _ in range(300):
        _, targets = mix(images, whole, mixup=0.4, cutmix=0, probability=1, generator=generator)
        shares.append(targets[0, 0])
    found = betainc(0.4, 0.4, torch.stack(shares).sort().values.double().numpy())
    expected = np.linspace(0, 1, len(found))
    assert np.abs(found - expected).max() < 1.95 / len(found) ** 0.5  # Kolmogorov, p = 0.001


def test_pasted_boxes_have_the_expected_size_and_both_ways_of_mixing_take_turns():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
    given = {"probability": 1, "generator": seeded()}
    pasted = [mix(images, torch.eye(2), mixup=0, cutmix=1, **given)[0][0] for _ in range(400)]
    # The mean of (s - s^2 / 4)^2, a box of side s with its center anywhere, over an even s^2.
    assert torch.stack(pasted).mean() == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.035)
    mixed = [mix(images, torch.eye(2), mixup=1, cutmix=1, **given)[0][0] for _ in range(400)]
    boxed = [bool(((face == 0) | (face == 1)).all()) for face in mixed]
    assert 0.4 < np.mean(boxed) < 0.6


def test_mixing_sometimes_or_never():
    images = torch.rand(4, 1, 8, 8)
    whole = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    for settings in (
        {"probability": 0, "mixup": 1, "cutmix": 1},
        {"probability": 1, "mixup": 0, "cutmix": 0},
    ):
        same, targets = mix(images, whole, generator=seeded(), **settings)
        assert same is images and torch.equal(targets, whole)
    generator = seeded()
    mixed = [
        mix(images, whole, mixup=1, cutmix=0, probability=0.3, generator=generator)[0] is not images
        for _ in range(500)
    ]
    assert 0.22 < np.mean(mixed) < 0.38
    again = [
        mix(images, whole, mixup=1, cutmix=1, probability=1, generator=seeded(9))[0] for _ in "ab"
    ]
    assert torch.equal(*again)


def test_strengths_are_plain_values():
    assert dataclasses.replace(FER, erase=0) == dataclasses.replace(FER, erase=0.0)
    assert hash(FER) == hash(Augment(**dataclasses.asdict(FER)))


def test_the_border_is_the_same_on_devices_without_that_mode():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 1, 5, 9, generator=generator)
    grid = torch.rand(2, 8, 8, 2, generator=generator) * 3 - 1.5
    expected = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    found = F.grid_sample(pixels, kept_inside(grid, 5, 9), align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
