"""The transform on the device gives open_clip's own pixels, every one of them."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raffect.encoders.preprocess import Preprocess, _halves, resize_matrix
from raffect.errors import RaffectError

SMALL = [(112, 112), (64, 64), (224, 224), (1, 1), (100, 150), (150, 100), (37, 200)]
LARGE = [(223, 225), (300, 300), (250, 400), (500, 260), (400, 100), (50, 900)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), SMALL + LARGE)
def test_pixels_and_range_are_those_of_open_clip(height, width, interpolation, resize_mode):
    rng = np.random.default_rng(height * 1000 + width)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (0.48, 0.45, 0.40), (0.26, 0.26, 0.27)
    options = {"size": 224, "interpolation": interpolation, "resize_mode": resize_mode}
    ours = Preprocess(mean=mean, std=std, **options)
    theirs = PreprocessCfg(mean=mean, std=std, **options)
    expected = image_transform_v2(theirs, is_train=False)(Image.fromarray(pixels))
    resized = ours.resize(torch.from_numpy(ours.shrink(pixels).copy())[None])
    scale, offset = (torch.tensor(values).view(3, 1, 1) for values in (std, mean))
    whole = (expected * scale + offset) * 255
    assert torch.equal(resized[0], whole.round())
    torch.testing.assert_close(ours.normalise(resized)[0], expected, rtol=0, atol=1e-6)


def test_torchs_own_bicubic_has_other_pixels():
    """Negative control: the obvious way differs, so the test above can fail."""
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    options = {"mode": "bicubic", "antialias": True}
    plain = torch.nn.functional.interpolate(x, size=(224, 224), **options)
    plain = plain.round().clamp(0, 255)[0]
    assert (plain != torch.from_numpy(expected).permute(2, 0, 1)).float().mean() > 0.05


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_each_row_of_a_resize_matrix_is_a_weighted_mean(interpolation):
    for old, new in ((112, 224), (300, 224), (7, 3)):
        np.testing.assert_allclose(resize_matrix(old, new, interpolation).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("change", [{"interpolation": "random"}, {"resize_mode": "longest"}])
def test_a_transform_that_is_not_implemented_is_refused(change):
    with pytest.raises(RaffectError, match="another --encoder.model"):
        Preprocess(size=224, mean=(0, 0, 0), std=(1, 1, 1), **change)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("new", "every"),
    [
        (224, 1),
        *((new, 7) for new in (256, 336, 384, 518)),
        *(pytest.param(new, 1, marks=pytest.mark.cluster) for new in (256, 336, 384, 518)),
    ],
)
def test_halves_have_eleven_bits_so_that_tf32_holds_them(new, every, interpolation):
    for old in range(1, new + 1, every):
        matrix = resize_matrix(old, new, interpolation)
        coarse, fine = _halves(matrix).double().numpy()
        assert np.array_equal(coarse + fine, matrix)
        for half, unit in ((coarse, 2.0**-10), (fine, 2.0**-22)):
            assert np.array_equal(half, np.round(half / unit) * unit)
            assert np.abs(half).max() <= 2048 * unit, (old, new)
