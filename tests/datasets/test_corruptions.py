"""Damaged copies of pictures, against PIL, numpy, colorsys and SciPy by hand."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from raffect.config import CORRUPTION_NAMES
from raffect.datasets.corruptions import (
    BLUR,
    BRIGHTNESS,
    CORRUPTIONS,
    GREY,
    JPEG,
    LOW_RESOLUTION,
    NOISE,
    OCCLUSION,
    STRENGTHS,
    Corruption,
)
from raffect.errors import RaffectError

NAMES = tuple(CORRUPTIONS)
DRAWN = ("noise", "occlusion")
"""Kinds that draw something."""


def scene(height=112, width=96, seed=0):
    """A smooth picture with an edge and all colors in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = rng.integers(1, height // 2), rng.integers(1, width // 2)
    pixels[top : top + height // 3, left : left + width // 3] = (200, 30, 90)
    return pixels


def damage(name, strength, pixels=None, video="v", frame=1, seed=0):
    pixels = scene() if pixels is None else pixels
    return Corruption(name, strength, seed).apply(pixels, video, frame)


def psnr(first, second):
    error = np.square(first.astype(float) - second.astype(float)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def ssim(first, second):
    """Structural similarity of grey pictures, Wang et al. 2004, with a Gaussian window of 1.5."""
    x, y = first.astype(float).mean(-1), second.astype(float).mean(-1)

    def mean(values):
        return gaussian_filter(values, 1.5)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_is_the_picture_itself_and_no_picture_is_written_to(name):
    pixels = scene()
    before = pixels.copy()
    assert damage(name, 0, pixels) is pixels
    for strength in range(1, STRENGTHS + 1):
        found = damage(name, strength, pixels)
        assert found.dtype == np.uint8
        assert found.shape == pixels.shape
        assert not np.array_equal(found, before)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measure", [psnr, ssim])
def test_each_strength_damages_more_than_the_one_before(name, measure):
    pictures = [scene(seed=seed) for seed in range(8)]
    values = [
        np.mean([measure(p, damage(name, strength, p, frame=k)) for k, p in enumerate(pictures)])
        for strength in range(STRENGTHS + 1)
    ]
    assert (np.diff(values) < 0).all(), values


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_follows_from_seed_corruption_strength_and_frame_alone(name):
    base = damage(name, 3)
    np.testing.assert_array_equal(base, damage(name, 3))
    others = [damage(name, 3, frame=2), damage(name, 3, video="w"), damage(name, 3, seed=1)]
    for other in others:
        assert np.array_equal(base, other) == (name not in DRAWN)
    # Frame 11 of "v" is not frame 1 of "v1"
    pairs = damage(name, 3, video="v", frame=11), damage(name, 3, video="v1", frame=1)
    assert np.array_equal(*pairs) == (name not in DRAWN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2), (3, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_pictures_of_any_size_and_of_one_color_are_damaged_or_left_within_bounds(
    name, shape, value
):
    pixels = np.full((*shape, 3), value, np.uint8)
    for strength in range(1, STRENGTHS + 1):
        found = damage(name, strength, pixels)
        assert found.shape == pixels.shape
        assert found.dtype == np.uint8


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_blur_is_near_an_exact_gaussian_of_that_share_of_the_shorter_side(strength):
    pixels = scene(150, 300)
    sigma = BLUR[strength - 1] * 150
    exact = gaussian_filter(pixels.astype(float), (sigma, sigma, 0), mode="nearest")
    inner = (slice(30, -30), slice(30, -30))
    found = damage("blur", strength, pixels)
    assert np.abs(found[inner] - exact[inner]).mean() < 1.5
    assert psnr(found, pixels) < psnr(found, exact)


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_noise_has_mean_0_and_the_deviation_that_is_documented(strength):
    pixels = np.full((300, 300, 3), 128, np.uint8)
    found = damage("noise", strength, pixels).astype(float) - 128
    sd = NOISE[strength - 1] * 255
    # What clipping at 0 and 255 does to normal values, by numpy
    drawn = np.clip(128 + sd * np.random.default_rng(0).normal(size=200_000), 0, 255) - 128
    assert abs(found.mean()) < 1
    assert found.std() == pytest.approx(drawn.std(), rel=0.02)
    assert np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1] < 0.02


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_brightness_raises_the_value_of_hsv_and_keeps_hue_and_saturation(strength):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    pixels[0, 0] = 0
    expected = np.empty_like(pixels)
    for place in np.ndindex(9, 9):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[place] / 255))
        rgb = colorsys.hsv_to_rgb(hue, saturation, min(1, value + BRIGHTNESS[strength - 1]))
        expected[place] = np.rint(np.array(rgb) * 255)
    found = damage("brightness", strength, pixels)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_jpeg_is_a_file_of_that_quality(strength):
    pixels, file = scene(), io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=JPEG[strength - 1], subsampling=2)
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(damage("jpeg", strength, pixels), expected)


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_occlusion_covers_its_share_with_one_grey_rectangle_within_the_picture(strength):
    pixels = scene()
    pixels[pixels == GREY] = GREY + 1
    for frame in range(20):
        found = damage("occlusion", strength, pixels, frame=frame)
        covered = (found == GREY).all(-1)
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        box = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert covered.mean() == pytest.approx(OCCLUSION[strength - 1], rel=0.06)
        np.testing.assert_array_equal(found[~covered], pixels[~covered])


def test_occlusions_lie_anywhere():
    pixels = scene()
    hidden = [(damage("occlusion", 2, pixels, frame=k) == GREY).all(-1) for k in range(300)]
    share = np.mean(hidden, axis=0)
    assert share[20:-20, 20:-20].min() > 0.03
    assert all(part.max() > 0 for part in (share[0], share[-1], share[:, 0], share[:, -1]))


@pytest.mark.parametrize("strength", range(1, STRENGTHS + 1))
def test_low_resolution_keeps_means_of_boxes_and_no_finer_detail(strength):
    share = LOW_RESOLUTION[strength - 1]
    side = round(1 / share)
    pixels = scene(side * 24, side * 24)
    found = damage("low-resolution", strength, pixels)
    means = pixels.reshape(24, side, 24, side, 3).mean((1, 3))
    exact = Image.fromarray(np.rint(means).astype(np.uint8)).resize(
        (side * 24, side * 24), Image.Resampling.BICUBIC
    )
    assert np.abs(found.astype(int) - np.asarray(exact)).max() <= 4


def test_the_command_offers_the_kinds_that_there_are():
    assert CORRUPTION_NAMES == NAMES
    assert all(len(levels) == STRENGTHS for _, levels in CORRUPTIONS.values())


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [("fog", 1, "corruption fog: expected one of blur"), ("blur", 6, "strength 6: expected 0")],
)
def test_other_kinds_and_strengths_are_refused_in_one_line(name, strength, message):
    with pytest.raises(RaffectError, match=message):
        Corruption(name, strength)
