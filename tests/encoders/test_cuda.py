"""Encoding on CUDA: pixels and vectors of the CPU, and what happens when memory runs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raffect.config import EncoderConfig
from raffect.encoders.preprocess import Preprocess
from raffect.encoders.tower import load_encoder
from tests.helpers.encoders import faces, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")
SIZES = [(112, 112), (64, 64), (224, 224), (1, 1), (100, 150), (150, 100), (37, 200), (223, 221)]


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pixel_is_open_clips(height, width, interpolation, resize_mode, size):
    pixels = np.random.default_rng(height + width).integers(0, 256, (9, height, width, 3), np.uint8)
    pixels[0], pixels[1, ::2] = 255, 255  # the largest sums
    load_encoder_flags()
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.26, 0.27)
    options = {"size": size, "interpolation": interpolation, "resize_mode": resize_mode}
    ours = Preprocess(mean=mean, std=std, **options)
    theirs = image_transform_v2(PreprocessCfg(mean=mean, std=std, **options), is_train=False)
    resized = ours.resize(torch.from_numpy(pixels).to(CUDA))
    expected = torch.stack([theirs(Image.fromarray(picture)) for picture in pixels])
    scale, offset = (torch.tensor(values).view(3, 1, 1) for values in (std, mean))
    whole = (expected * scale + offset) * 255
    assert torch.equal(resized.cpu(), whole.round())
    torch.testing.assert_close(ours.normalise(resized).cpu(), expected, rtol=0, atol=1e-6)


def load_encoder_flags():
    """What `load_encoder` sets before a resize."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


FRAMES = [(112, 112), (224, 224), (64, 64), (100, 150), (150, 100), (300, 260), (112, 112)]


def test_vectors_in_float32_are_those_of_encode_image(tiny_vit):
    frames = faces(*FRAMES[:4])
    encoder = load_encoder(replace(tiny_vit, precision="float32"), "cuda")
    with torch.inference_mode():
        ours = encoder.forward(encoder.prepare(frames)).cpu().numpy()
    expected = reference(tiny_vit, frames)
    print(f"float32: {np.abs(ours - expected).max() / np.abs(expected).max():.1e}")
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 0.02), ("bfloat16", 0.1)])
@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_is_close(tiny_vit, precision, tolerance, compiled):
    frames = faces(*FRAMES)
    encoder = load_encoder(replace(tiny_vit, precision=precision, compile=compiled), "cuda")
    assert encoder.identity.precision == ("float16" if precision == "auto" else precision)
    ours, expected = encoder.encode(frames).astype(np.float32), reference(tiny_vit, frames)
    print(f"{precision}: {np.abs(ours - expected).max() / np.abs(expected).max():.1e}")
    assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max()


def test_a_vector_does_not_depend_on_the_frames_beside_it(tiny_vit):
    encoder = load_encoder(tiny_vit, "cuda")
    frames = faces(*[(112, 112)] * 11)
    whole = encoder.encode(frames)
    for start, stop in ((0, 1), (3, 5), (4, 11), (0, 11)):
        assert np.array_equal(encoder.encode(frames[start:stop]), whole[start:stop])
    again = load_encoder(tiny_vit, "cuda").encode(frames)
    assert np.array_equal(again, whole)


@pytest.mark.parametrize("side", [112, 64])
def test_a_full_batch_has_the_bits_of_a_padded_one(side):
    config = EncoderConfig(model="raffect-faces", weights="embedded", batch_size=64)
    encoder, frames = load_encoder(config, "cuda"), faces(*[(side, side)] * 64)
    assert np.array_equal(encoder.encode(frames)[:63], encoder.encode(frames[:63]))


def test_running_out_of_memory_halves_the_batch_and_goes_on(tiny_vit, caplog):
    frames = faces(*[(112, 112)] * 64)
    expected = load_encoder(replace(tiny_vit, batch_size=64), "cuda").encode(frames * 8)
    encoder = load_encoder(replace(tiny_vit, batch_size=8192), "cuda")
    torch.cuda.empty_cache()
    share = 2e9 / torch.cuda.get_device_properties(0).total_memory  # the input alone takes 4.9 GB
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        ours = encoder.encode(frames * 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(f"{encoder.batch_size} pictures fit")
    assert encoder.batch_size < 8192
    assert "out of memory" in caplog.text
    ours, expected = ours.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(ours, expected, rtol=0.02, atol=0.02)
