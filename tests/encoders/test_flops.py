"""Operations of a tower for one picture, against counts by hand."""

from dataclasses import replace

import pytest

from raffect.encoders.flops import count_flop
from tests.helpers.banks import IDENTITY


def of_model(name, size):
    return replace(IDENTITY, model=name, weights="openai", preprocess={"size": size})


def vit_by_hand(size, patch, width, depth, out=0):
    """A multiply-add is two operations; a vision transformer with one class token."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    embed = patches * 3 * patch**2 * width
    attention = tokens * width * 3 * width + 2 * tokens**2 * width + tokens * width * width
    mlp = 2 * tokens * width * 4 * width
    return 2 * (embed + depth * (attention + mlp) + width * out)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("ViT-B-32-quickgelu", {"size": 224, "patch": 32, "width": 768, "depth": 12, "out": 512}),
        ("timm:vit_tiny_patch16_224", {"size": 96, "patch": 16, "width": 192, "depth": 12}),
    ],
)
def test_operations_are_those_of_a_count_by_hand(model, shape):
    assert count_flop(of_model(model, shape["size"])) == vit_by_hand(**shape)


@pytest.mark.cluster
def test_vit_l_14_has_the_number_from_which_rates_of_gpus_are_computed():
    found = count_flop(of_model("ViT-L-14-quickgelu", 224))
    assert found == vit_by_hand(size=224, patch=14, width=1024, depth=24, out=768)
    assert found / 1e9 == pytest.approx(162.03, abs=0.01)


def test_features_of_an_unknown_encoder_have_no_count():
    assert count_flop(of_model("teacher", 4)) is None
