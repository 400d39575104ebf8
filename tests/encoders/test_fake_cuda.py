"""A batch of pictures on CUDA, from uint8 to vectors, checked without a card."""

import numpy as np
import pytest
import torch

from raffect.config import EncoderConfig
from raffect.encoders import preprocess
from tests.helpers.encoders import faces
from tests.helpers.fake_cuda import Watch, fake_encoder

TIMM = EncoderConfig(model="timm:test_vit.r160_in1k", weights="random:0", batch_size=4)
EMBEDDED = EncoderConfig(model="raffect-faces", weights="embedded", batch_size=4)
FULL, SHORT = [(112, 112)] * 4, [(112, 112)] * 3


def encode_watched(config, *batches):
    """Vectors of each batch but the first, which makes what later ones use again, and a watch."""
    with fake_encoder(config) as encoder:
        encoder.encode(faces(*batches[0]))
        with Watch(captured=False) as watch:
            found = [encoder.encode(faces(*batch)) for batch in batches[1:]]
    return found, watch


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_a_batch_waits_for_its_vectors_alone(tiny_vit, precision):
    config = EncoderConfig(model=tiny_vit.model, weights="random:0", batch_size=4)
    config = EncoderConfig(**{**vars(config), "precision": precision})
    (whole, short), watch = encode_watched(config, FULL, FULL, SHORT)
    assert whole.shape == (4, 24)
    assert short.shape == (3, 24)
    assert len(watch.waits) == 2, watch.waits
    assert all("tower.py" in wait for wait in watch.waits)


@pytest.mark.parametrize("config", [TIMM, EMBEDDED], ids=["timm", "embedded"])
def test_other_towers_wait_for_their_vectors_alone(config):
    _, watch = encode_watched(config, FULL, FULL, SHORT)
    assert len(watch.waits) == 2, watch.waits


def test_pictures_of_several_sizes_share_a_batch(tiny_vit):
    """Where they belong is copied to the device, which waits, once for each size."""
    (found,), watch = encode_watched(tiny_vit, [(112, 112)], [(112, 112), (64, 64), (112, 112)])
    assert found.shape == (3, 24)
    assert 1 < len(watch.waits) <= 5


def test_a_matrix_that_stays_on_the_cpu_is_an_error(tiny_vit, monkeypatch):
    found = preprocess._matrices.__wrapped__
    here = torch.device("cpu")
    monkeypatch.setattr(preprocess, "_matrices", lambda *key: found(*key[:-1], here))
    with pytest.raises(RuntimeError, match="same device|two different devices"):
        encode_watched(tiny_vit, FULL, FULL)


def test_tensors_without_values_are_forgotten(tiny_vit):
    encode_watched(tiny_vit, FULL, FULL)
    pixels = torch.from_numpy(np.stack(faces((112, 112))))
    config = {"size": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    resized = preprocess.Preprocess(**config).resize(pixels)
    assert type(resized) is torch.Tensor
    assert preprocess._matrices.cache_info().currsize == 1
