"""An encoder as one word, and settings of `raffect compare` that cannot be."""

import pytest

import raffect
from raffect.config import CompareConfig, EncoderConfig
from raffect.config.compare import name_encoder, read_encoder
from raffect.errors import RaffectError


@pytest.mark.parametrize(
    ("word", "expected", "name"),
    [
        ("ViT-L-14-quickgelu", {}, "ViT-L-14-quickgelu:openai"),
        ("ViT-B-32:random", {"weights": "random:0"}, "ViT-B-32:random:0"),
        ("ViT-B-32:random:7", {"weights": "random:7"}, "ViT-B-32:random:7"),
        ("ViT-B-32:/w/a:b@2.pt", {"weights": "/w/a:b@2.pt"}, "ViT-B-32:a:b@2.pt"),
        ("raffect-faces", {"weights": "embedded"}, "raffect-faces:embedded"),
        ("raffect-faces:embedded@flip", {"view": "flip"}, "raffect-faces:embedded@flip"),
        ("timm:a.b", {"weights": "b"}, "timm:a.b"),
        ("timm:a.b@336@crop:.8", {"image_size": 336, "view": "crop:0.8"}, "timm:a.b@336@crop:0.8"),
        ("timm:a:random:3@96", {"weights": "random:3", "image_size": 96}, "timm:a:random:3@96"),
    ],
)
def test_an_encoder_is_one_word(word, expected, name):
    found = read_encoder(word)
    model = word.partition("@")[0] if word.startswith("timm:a.b") else None
    model = model or ("timm:a" if word.startswith("timm:") else word.split(":")[0].split("@")[0])
    weights = "embedded" if model == "raffect-faces" else "b" if model == "timm:a.b" else "openai"
    assert found == EncoderConfig(**{"model": model, "weights": weights, **expected})
    assert name_encoder(found) == name
    assert "/" in word or read_encoder(name) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--encoders: expected one encoder or more"),
        ({"encoders": ("a",)}, "--manifest: expected"),
        ({"banks": ("a",), "join": True}, "--join: expected two"),
        ({"encoders": (":random",), "manifest": "m"}, "--encoders :random: expected MODEL"),
        ({"encoders": ("timm:",), "manifest": "m"}, "--encoders timm:: expected MODEL"),
        ({"encoders": ("a@flop",), "manifest": "m"}, "--encoders a@flop: expected MODEL"),
        ({"encoders": ("a@9@flip@8",), "manifest": "m"}, "has two of @8 and @9"),
        ({"encoders": ("a@9",), "manifest": "m"}, "image-size 9: expected 0"),
        ({"encoders": ("a@crop:3",), "manifest": "m"}, "crop:3: expected flip, or crop"),
        ({"banks": ("a",), "num_seeds": 0}, "--num-seeds 0"),
        ({"banks": ("a",), "epochs": -1}, "--epochs -1"),
        ({"banks": ("a",), "recipe": ()}, "--recipe"),
        ({"banks": tuple("abcdefghijklmnopqrstuvwxyz1")}, "at most 26"),
    ],
)
def test_settings_are_checked_at_once(tmp_path, settings, message):
    with pytest.raises(RaffectError, match=message):
        CompareConfig(labels=tmp_path, out=tmp_path, **settings)


def test_two_encoders_of_one_name_are_refused(tmp_path):
    for words in (("raffect-faces", "raffect-faces:embedded"), ("a:/x/w.pt", "a:/y/w.pt")):
        paths = {"manifest": tmp_path, "labels": tmp_path, "out": tmp_path}
        with pytest.raises(RaffectError, match="two encoders or banks have this name"):
            raffect.compare(CompareConfig(encoders=words, **paths))
