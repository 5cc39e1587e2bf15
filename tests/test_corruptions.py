"""Corruptions: seeded, ordered by severity, same kind of array out as in."""

import numpy as np
import pytest

from fer_helpers.corruptions import CORRUPTIONS, SEVERITIES, corrupt, fixed_sample, robustness


def faces(channels=1):
    y, x = np.mgrid[:48, :48]
    face = 150 + 60 * np.sin(x / 4) * np.cos(y / 5)
    return np.repeat(face[None, ..., None], channels, axis=3).astype(np.uint8).repeat(6, axis=0)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_severity_is_worse_than_the_one_before(name, channels):
    images = faces(channels)
    before = images.copy()
    errors = []
    for severity in SEVERITIES:
        spoiled = corrupt(images, name, severity)
        assert (spoiled.dtype, spoiled.shape) == (np.uint8, images.shape)
        np.testing.assert_array_equal(spoiled, corrupt(images, name, severity))
        errors.append(np.abs(spoiled.astype(float) - images).mean())
    np.testing.assert_array_equal(images, before)
    if name == "rotation":  # a pattern may resemble itself again
        assert min(errors) > 1
    else:
        assert (np.diff(errors) > 0).all()


def test_occlusion_hides_the_stated_share():
    images = np.zeros((50, 48, 48, 1), np.uint8)
    hidden = (corrupt(images, "occlusion", 3) == 128).mean()
    assert hidden == pytest.approx(0.2, abs=0.01)


def test_robustness_asks_once_per_corruption_and_severity():
    images, labels, asked = faces(), np.array([0, 0, 0, 0, 1, 1]), []

    def predict(pixels):
        asked.append(pixels)
        bright = pixels.mean(axis=(1, 2, 3)) > 100
        return np.stack([bright, ~bright], axis=1)

    result = robustness(predict, images, labels)
    assert list(result) == list(CORRUPTIONS) and len(asked) == 31
    assert result["blur"] == [pytest.approx(4 / 6)] * 6
    assert result["darkness"][5] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="for 2 labels"):
        robustness(predict, images, labels[:2])


def test_the_sample_is_the_same_everywhere():
    assert fixed_sample(5).tolist() == [0, 1, 2, 3, 4]
    assert len(np.unique(fixed_sample(7178))) == 1000
    assert fixed_sample(7178)[:3].tolist() == [4, 12, 17]


def test_bad_input():
    with pytest.raises(ValueError, match="no corruption 'fog'"):
        corrupt(faces(), "fog", 1)
    with pytest.raises(ValueError, match="severity 6"):
        corrupt(faces(), "blur", 6)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(faces() / 255, "blur", 1)
    assert corrupt(faces()[:0], "jpeg", 1).shape == (0, 48, 48, 1)
