"""timm's image towers: timm's own vectors and transform, one identity a size, weights and view."""

import io
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from raffect.config import EncoderConfig, ModelsListConfig, ModelsPullConfig, ModelsVerifyConfig
from raffect.encoders import catalogue
from raffect.encoders.text import open_text_encoder
from raffect.encoders.tower import load_encoder
from raffect.encoders.weights import encoder_of, resolve, weights_folder
from raffect.errors import RaffectError
from raffect.extraction.asked_encoder import read_geometry
from raffect.extraction.steps import decode_frames
from tests.helpers.encoders import faces

SIZES = [(112, 112), (160, 160), (100, 150), (171, 300), (400, 90)]
TINY = EncoderConfig(model="timm:test_vit.r160_in1k", weights="random:0", batch_size=3)


@pytest.fixture(autouse=True)
def no_weights_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAFFECT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)


def timms(name, size=None, seed=0, **options):
    """timm's own tower and transform, at a size; random weights of a seed."""
    if size and timm.models.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=0, **options).eval()
    asked = {"input_size": (3, size, size)} if size else {}
    return model, create_transform(**resolve_data_config(asked, model=model))


@torch.inference_mode()
def vectors_of_timm(model, transform, frames):
    return model(torch.stack([transform(Image.fromarray(frame)) for frame in frames])).numpy()


@torch.inference_mode()
def vectors_of(encoder, frames):
    """Ours before they are stored, a frame a batch of its own shape."""
    parts = [encoder.forward(encoder.prepare([frame]))[:1] for frame in frames]
    return torch.cat(parts).numpy()


def require_close(ours, expected):
    assert ours.shape == expected.shape
    scale = np.abs(expected).max()
    # Other pictures have other vectors, so that a tower which saw nothing would fail.
    assert np.ptp(expected, axis=0).max() > 1e-2 * scale
    assert np.abs(ours - expected).max() / scale < 1e-5


@pytest.mark.parametrize(
    ("name", "size", "pooling"),
    [
        ("test_vit.r160_in1k", 0, "token"),  # resized to 168, cropped to 160
        ("test_vit.r160_in1k", 96, "token"),
        ("test_vit4.r160_in1k", 0, "avg"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 64, "token"),
        ("resnet18.a1_in1k", 80, "avg"),
        ("test_convnext.r160_in1k", 0, "avg"),
        ("test_byobnet.r160_in1k", 0, "avg"),
    ],
)
def test_vectors_are_those_of_timm_with_its_own_transform(name, size, pooling):
    frames = faces(*SIZES)
    config = EncoderConfig(model=f"timm:{name}", weights="random:0", batch_size=1, image_size=size)
    encoder = load_encoder(config, "cpu")
    expected = vectors_of_timm(*timms(name, size or None), frames)
    require_close(vectors_of(encoder, frames), expected)
    assert encoder.identity.dim == expected.shape[1]
    assert encoder.identity.preprocess["pooling"] == pooling
    assert encoder.identity.caveat == "random weights"


def test_pixels_are_those_of_timm_to_the_last_one():
    _, transform = timms("test_vit.r160_in1k")
    encoder = load_encoder(TINY, "cpu")
    for frame in faces(*SIZES, (168, 168), (169, 170), (167, 301), (1, 1)):
        expected = transform(Image.fromarray(frame))
        torch.testing.assert_close(encoder.prepare([frame])[0], expected, rtol=0, atol=1e-6)


def test_dinov2_takes_224_pixels_unless_another_size_is_asked_for():
    model = "timm:vit_small_patch14_dinov2.lvd142m"
    assert read_geometry(resolve(EncoderConfig(model=model, weights="random:0"))).size == 224
    config = EncoderConfig(model=model, weights="random:0", image_size=56)
    found = load_encoder(config, "cpu").identity
    assert (found.preprocess["size"], found.dim) == (56, 384)
    assert found.preprocess["pooling"] == "token"
    with pytest.raises(
        RaffectError, match="patches of 14 pixels; use a multiple of that, 84 or 98"
    ):
        load_encoder(replace(config, image_size=96), "cpu")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_position_embeddings_of_a_file_are_stretched_by_timm(tmp_path, suffix):
    whole = timm.create_model("test_vit", num_classes=7)  # with a head, which is left out
    file = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), file)
    else:
        save_file(whole.state_dict(), file)
    frames = faces(*SIZES)
    for size in (160, 96):
        overlay = {"file": str(file), "num_classes": 7}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
        expected = vectors_of_timm(*timms("test_vit", size, **options), frames)
        config = replace(TINY, weights=str(file), image_size=size, batch_size=1)
        require_close(vectors_of(load_encoder(config, "cpu"), frames), expected)


def test_size_seed_weights_and_view_are_other_identities(tmp_path):
    identity = load_encoder(TINY, "cpu").identity
    assert load_encoder(TINY, "cpu").identity == identity
    own = replace(TINY, image_size=160)
    assert load_encoder(own, "cpu").identity == identity
    for change in (
        {"image_size": 96},
        {"weights": "random:1"},
        {"view": "flip"},
        {"view": "crop:0.8"},
        {"precision": "bfloat16"},
        {"model": "timm:test_vit"},
    ):
        other = load_encoder(replace(TINY, **change), "cpu").identity
        assert identity.differences(other), change
        # What a bank records is enough to load the encoder again.
        assert load_encoder(encoder_of(other), "cpu").identity == other


def test_a_file_and_the_same_tensors_from_a_seed_have_one_fingerprint(tmp_path):
    made = load_encoder(TINY, "cpu").identity
    file = tmp_path / "same.safetensors"
    save_file(timms("test_vit")[0].state_dict(), file)
    loaded = load_encoder(replace(TINY, weights=str(file)), "cpu").identity
    assert loaded.weights_sha256 == made.weights_sha256
    assert (loaded.weights, loaded.caveat) == ("same.safetensors", "")


def test_a_tag_is_found_in_our_folder_and_in_the_caches(tmp_path, capsys):
    config = EncoderConfig(model="timm:test_vit.r160_in1k")
    assert config.weights == "r160_in1k"
    with pytest.raises(
        RaffectError, match="run `raffect models pull.*test_vit.r160_in1k`"
    ) as error:
        resolve(config)
    target = weights_folder() / "timm--test_vit.r160_in1k.safetensors"
    assert str(target) in str(error.value)
    target.parent.mkdir(parents=True)
    save_file(timms("test_vit")[0].state_dict(), target)
    assert resolve(config).file == target
    report = catalogue.verify(ModelsVerifyConfig(encoder=config))
    assert (report.file, report.dim, report.caveat) == (target, 64, "")
    assert catalogue.pull(ModelsPullConfig(encoder=config)).was_here
    listed = catalogue.list_models(ModelsListConfig(pattern="timm:test_vit", present=True))
    assert [(each.model, each.tag) for each in listed.weights] == [(config.model, config.weights)]
    from raffect.encoders.timm_models import list_present

    assert list_present() == [config.model]


def tampered(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    file = tmp_path / "mine.safetensors"
    config = replace(TINY, weights=str(file))
    with pytest.raises(RaffectError, match="no such file"):
        load_encoder(config, "cpu")
    faults = {
        "does not fit": lambda state: state.pop("blocks.0.attn.qkv.weight"),
        "Unexpected key": lambda state: state.update(extra=torch.zeros(2)),
        "size mismatch": lambda state: state.update({"norm.weight": torch.zeros(3)}),
        "NaN or infinity": lambda state: state["norm.weight"].fill_(torch.nan),
    }
    for match, change in faults.items():
        save_file(timms("test_vit")[0].state_dict(), file)
        tampered(file, change)
        with pytest.raises(RaffectError, match=match) as error:
            load_encoder(config, "cpu")
        assert "\n" not in str(error.value)
    # Damaged files, and one that would run code.
    file.write_bytes(b"nothing")
    with pytest.raises(RaffectError, match="cannot be loaded"):
        load_encoder(config, "cpu")
    code = tmp_path / "code.pt"
    code.write_bytes(pickle.dumps(Bomb(tmp_path / "bang")))
    with pytest.raises(RaffectError, match="cannot be loaded"):
        load_encoder(replace(config, weights=str(code)), "cpu")
    assert not (tmp_path / "bang").exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (type(self.file).touch, (self.file,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "timm:vit_base_patch14_dinov3.lvd142m"}, "did you mean timm:vit_base_patch14_"),
        ({"model": "timm:test_vit", "weights": "openai"}, "use --encoder.model timm:test_vit.r160"),
        ({"weights": "r161_in1k"}, "the tag of a timm model is in its name"),
        ({"weights": "random:x"}, "expected random:SEED"),
        ({"image_size": 90}, "multiple of that, 80 or 96"),
        ({"model": "raffect-faces", "weights": "embedded", "image_size": 224}, "takes 112 pixels"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_in_one_line(changes, message):
    with pytest.raises(RaffectError, match=message) as error:
        load_encoder(replace(TINY, **changes), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("view", ["mirror", "crop", "crop:1", "crop:0.05", "crop:-0.5", "crop:nan"])
def test_views_that_do_not_exist_are_refused(view):
    with pytest.raises(RaffectError, match="expected flip, or crop: and a share"):
        EncoderConfig(view=view)


@pytest.mark.parametrize("model", ["timm:test_vit.r160_in1k", "raffect-faces"])
def test_a_view_is_what_the_encoder_sees_of_a_picture_that_was_changed_by_hand(model):
    weights = "random:0" if model.startswith("timm") else "embedded"
    plain = EncoderConfig(model=model, weights=weights, batch_size=1)
    encoder = load_encoder(plain, "cpu")
    size = encoder.preprocess.size
    flipped = load_encoder(replace(plain, view="flip"), "cpu")
    cropped = load_encoder(replace(plain, view="crop:0.8"), "cpu")
    # CLIP and timm resize the shorter side; the middle 80 % of that is another resize.
    side = math.floor((encoder.preprocess.resize_to or size) / 0.8)
    by_hand = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(size)])
    assert flipped.identity.weights_sha256 == encoder.identity.weights_sha256
    for frame in faces((size, size), (300, 200), (90, 90)):
        mirrored = encoder.prepare([frame]).flip(-1)
        assert torch.equal(flipped.prepare([frame]), mirrored)
        with torch.inference_mode():
            assert torch.equal(flipped.forward(mirrored), encoder.forward(mirrored))
        middle = np.asarray(by_hand(Image.fromarray(frame)))
        pixels = torch.from_numpy(middle.copy()).permute(2, 0, 1)[None].float()
        assert torch.equal(cropped.prepare([frame]), cropped.preprocess.normalise(pixels))


def test_a_bank_of_a_tower_without_texts_is_refused_where_texts_are_needed():
    identity = load_encoder(TINY, "cpu").identity
    with pytest.raises(RaffectError, match=r"bank: made by timm:test_vit.*has no text tower"):
        open_text_encoder(identity, Path("bank"))


@pytest.mark.parametrize("view", ["", "crop:0.7"])
@pytest.mark.parametrize("model", [TINY.model, "raffect-faces"])
def test_pictures_that_a_reader_has_shrunk_are_the_encoders_to_the_last_pixel(model, view):
    weights = TINY.weights if model == TINY.model else "embedded"
    config = EncoderConfig(model=model, weights=weights, view=view, batch_size=1)
    encoder, geometry = load_encoder(config, "cpu"), read_geometry(resolve(config))
    for frame in faces((100, 90), (113, 112), (160, 160), (168, 169), (301, 200), (160, 500)):
        content = io.BytesIO()
        Image.fromarray(frame).save(content, "png")
        pile, bad = decode_frames([content.getvalue()], geometry)
        assert not bad
        shrunk = np.asarray(pile.pixels).reshape(*pile.shapes[0], 3)
        assert max(shrunk.shape) <= encoder.preprocess.side
        assert torch.equal(encoder.prepare([shrunk]), encoder.prepare([frame]))
