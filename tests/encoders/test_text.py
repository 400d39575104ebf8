"""The text tower: open_clip's vectors of the bank's own weights, kept by weights and prompt."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from raffect.bank.records import Identity
from raffect.config import EncoderConfig
from raffect.encoders.text import open_text_encoder
from raffect.encoders.tower import build_model, load_encoder
from raffect.encoders.weights import EMBEDDED_FOLDER, resolve
from raffect.errors import RaffectError

EMBEDDED = EncoderConfig(model="raffect-faces", weights="embedded")
PROMPTS = ["a face with inner brows raised", "a face with lips parted", "lips pressed together"]


@pytest.fixture(scope="module")
def identity() -> Identity:
    """What a bank of the embedded encoder records."""
    return load_encoder(EMBEDDED, "cpu").identity


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAFFECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def reference(config: EncoderConfig, prompts) -> np.ndarray:
    model = build_model(resolve(config)).eval()
    with torch.no_grad():
        return model.encode_text(open_clip.get_tokenizer(config.model)(prompts)).numpy()


def test_vectors_are_those_of_encode_text(identity, tmp_path):
    found = open_text_encoder(identity, tmp_path).encode(PROMPTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(EMBEDDED, PROMPTS), rtol=1e-4, atol=1e-5)


def test_another_clip_with_random_weights_has_its_own_text_tower(tiny_vit, tmp_path):
    identity = load_encoder(tiny_vit, "cpu").identity
    found = open_text_encoder(identity, tmp_path).encode(["a face"])
    np.testing.assert_allclose(found, reference(tiny_vit, ["a face"]), rtol=1e-4, atol=1e-5)


def test_both_fingerprints_and_the_scale_are_those_of_the_weights(identity, tmp_path):
    found = open_text_encoder(identity, tmp_path).identity
    assert found.image_sha256 == identity.weights_sha256
    assert found.text_sha256 not in ("", found.image_sha256)
    assert (found.dim, found.context_length) == (identity.dim, 48)
    state = load_file(EMBEDDED_FOLDER / "raffect-faces.safetensors")
    assert found.scale == pytest.approx(float(state["logit_scale"].float().exp()))
    assert found.caveat == "embedded encoder, not CLIP"


def test_a_vector_does_not_depend_on_the_prompts_beside_it(identity, tmp_path, monkeypatch):
    together = open_text_encoder(identity, tmp_path).encode(PROMPTS)
    monkeypatch.setenv("RAFFECT_CACHE", str(tmp_path / "other"))
    alone = open_text_encoder(identity, tmp_path).encode(PROMPTS[1:2])
    assert (together[1] == alone[0]).all()


def test_prompts_are_encoded_once_and_later_without_loading_the_weights(identity, tmp_path):
    first = open_text_encoder(identity, tmp_path)
    vectors = first.encode([*PROMPTS, PROMPTS[0]])
    assert first.num_encoded == 3
    second = open_text_encoder(identity, tmp_path)
    assert (second.encode([*PROMPTS, PROMPTS[0]]) == vectors).all()
    assert second.num_encoded == 0
    assert "_model" not in vars(second)
    assert len(second.encode([*PROMPTS, "eyelids tightened"])) == 4
    assert second.num_encoded == 1


def test_words_without_an_embedding_are_named_from_the_cache_as_well(identity, tmp_path):
    for _ in range(2):
        encoder = open_text_encoder(identity, tmp_path)
        encoder.encode(["a face of joy", *PROMPTS])
        assert encoder.unknown_words(["a face of joy"]) == ["joy"]
        assert encoder.unknown_words(PROMPTS) == []


def test_a_prompt_that_is_too_long_is_refused_with_its_text(identity, tmp_path):
    encoder = open_text_encoder(identity, tmp_path)
    fits = " ".join(["face"] * 46)
    assert encoder.encode([fits]).shape == (1, identity.dim)
    with pytest.raises(RaffectError, match=r"prompt of 49 tokens, raffect-faces reads 48: 'face"):
        encoder.encode([f"{fits} face"])
    with pytest.raises(RaffectError, match="an empty prompt"):
        encoder.encode(["  "])


def test_weights_of_another_image_tower_are_refused(identity, tmp_path):
    state = load_file(EMBEDDED_FOLDER / "raffect-faces.safetensors")
    name = next(name for name in state if name.startswith("visual.") and "weight" in name)
    state[name] = state[name] * 1.5
    save_file(state, tmp_path / "others.safetensors")
    with pytest.raises(RaffectError, match=r"made by other weights than others.safetensors"):
        open_text_encoder(identity, tmp_path, str(tmp_path / "others.safetensors"))


def test_the_same_weights_in_another_file_have_the_same_identity_but_for_their_name(
    identity, tmp_path
):
    state = load_file(EMBEDDED_FOLDER / "raffect-faces.safetensors")
    save_file({name: tensor.float() for name, tensor in state.items()}, tmp_path / "f.safetensors")
    other = open_text_encoder(identity, tmp_path, str(tmp_path / "f.safetensors"))
    first = open_text_encoder(identity, tmp_path)
    assert replace(other.identity, weights="embedded") == first.identity
    assert (other.encode(PROMPTS) == first.encode(PROMPTS)).all()


def test_weights_that_a_bank_names_and_that_are_not_there_are_asked_for(identity, tmp_path):
    gone = replace(identity, weights="gone.safetensors")
    with pytest.raises(RaffectError, match=r"need the weights that made it.*name them with --wei"):
        open_text_encoder(gone, tmp_path)


def test_a_model_whose_tokenizer_would_be_downloaded_is_refused(identity, tmp_path):
    other = replace(identity, model="ViT-B-16-SigLIP", weights="random:0")
    with pytest.raises(RaffectError, match="its tokenizer does not come with open_clip"):
        open_text_encoder(other, tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 400])
def test_a_damaged_file_of_the_cache_is_named(identity, tmp_path, cache, content):
    open_text_encoder(identity, tmp_path).encode(PROMPTS)
    (file,) = cache.glob("*/*.parquet")
    file.write_bytes(content)
    with pytest.raises(RaffectError, match=rf"{file.name}: damaged .*; delete it"):
        open_text_encoder(identity, tmp_path).encode(PROMPTS)


def test_a_cache_that_cannot_be_written_costs_a_warning_alone(identity, tmp_path, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    found = open_text_encoder(identity, tmp_path).encode(PROMPTS)
    assert found.shape == (3, identity.dim)
    assert "are not kept for the next time" in caplog.text
