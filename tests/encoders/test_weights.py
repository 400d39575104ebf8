"""Weights are found without network or torch; every fault is one line that says what to do."""

import subprocess
import sys

import open_clip
import pytest

from raffect.config import EncoderConfig
from raffect.encoders.weights import (
    EMBEDDED_CAVEAT,
    RANDOM_CAVEAT,
    get_tag_config,
    list_tags,
    model_configs,
    read_model_config,
    resolve,
    weights_folder,
)
from raffect.errors import RaffectError


@pytest.fixture(autouse=True)
def no_weights_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAFFECT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_tables_are_those_of_open_clip():
    # Other tests add models of their own to open_clip.
    added = ("tiny-vit", "raffect-faces")
    differing = set(model_configs()) ^ set(open_clip.list_models())
    assert all(name.startswith(added) for name in differing)
    for model in ("ViT-L-14", "ViT-L-14-quickgelu", "RN50", "coca_ViT-L-14"):
        assert list_tags(model) == open_clip.list_pretrained_tags_by_model(model)
        assert read_model_config(model) == open_clip.get_model_config(model)
    tag = ("ViT-L-14", "openai")
    assert get_tag_config(*tag) == open_clip.get_pretrained_cfg(*tag)


PATH_COMMAND = """
import sys
from raffect.cli import main
status = main(["models", "path"])
print([m for m in ("torch", "ray", "open_clip") if m in sys.modules])
sys.exit(status)
"""


def test_missing_weights_fail_before_anything_is_imported_and_say_what_to_bring():
    command = [sys.executable, "-c", PATH_COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "[]"
    assert "raffect models pull" in done.stderr
    assert f"{weights_folder()}/ViT-L-14-quickgelu--openai.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def touch(name):
    file = weights_folder() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    return file


def test_a_tag_is_found_in_our_folder_and_carries_its_preprocess():
    file = touch("ViT-B-16-SigLIP--webli.safetensors")
    source = resolve(EncoderConfig(model="ViT-B-16-SigLIP", weights="webli"))
    assert source.file == file
    assert tuple(source.preprocess["mean"]) == (0.5, 0.5, 0.5)
    assert source.preprocess["resize_mode"] == "squash"
    assert source.caveat == ""


def test_a_tag_is_found_where_open_clip_and_the_hub_keep_it(tmp_path):
    url = get_tag_config("ViT-L-14", "laion400m_e31")["url"].rsplit("/", 1)[-1]
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    (cache / url).write_bytes(b"x")
    assert resolve(EncoderConfig(model="ViT-L-14", weights="laion400m_e31")).file == cache / url


@pytest.mark.parametrize(
    ("model", "right"), [("ViT-L-14", "ViT-L-14-quickgelu"), ("ViT-B-32", "ViT-B-32-quickgelu")]
)
def test_openai_weights_in_a_plain_gelu_model_are_an_error(model, right, tmp_path):
    touch(f"{model}--openai.safetensors")
    file = tmp_path / "openai-vit.safetensors"
    file.write_bytes(b"x")
    for weights in ("openai", str(file)):
        with pytest.raises(RaffectError, match=f"QuickGELU.*use --encoder.model {right}$"):
            resolve(EncoderConfig(model=model, weights=weights))


def test_a_local_file_is_what_its_name_or_all_tags_of_its_model_say(tmp_path):
    siglip = tmp_path / "mine.safetensors"
    siglip.write_bytes(b"x")
    source = resolve(EncoderConfig(model="ViT-B-16-SigLIP", weights=str(siglip)))
    assert source.preprocess["resize_mode"] == "squash"
    model, tag = "ViT-H-14-378-quickgelu", "dfn5b"
    named = tmp_path / f"{model}--{tag}.safetensors"
    named.write_bytes(b"x")
    found, entry = (
        resolve(EncoderConfig(model=model, weights=str(named))),
        get_tag_config(model, tag),
    )
    keys = ("mean", "std", "interpolation", "resize_mode")
    assert found.preprocess == {key: entry[key] for key in keys if entry.get(key)}
    plain = tmp_path / "ViT-L-14--dfn2b_s39b.safetensors"
    plain.write_bytes(b"x")
    assert resolve(EncoderConfig(model="ViT-L-14", weights=str(plain))).quick_gelu is False


def test_plain_weights_in_a_quickgelu_model_are_not_offered():
    with pytest.raises(RaffectError, match="no such tag"):
        resolve(EncoderConfig(model="ViT-L-14-quickgelu", weights="laion2b_s32b_b82k"))


def test_random_and_embedded_weights_carry_a_caveat():
    assert resolve(EncoderConfig(model="RN50", weights="random:7")).caveat == RANDOM_CAVEAT
    embedded = resolve(EncoderConfig(model="raffect-faces", weights="embedded"))
    assert embedded.caveat == EMBEDDED_CAVEAT


@pytest.mark.parametrize(
    ("model", "weights", "match"),
    [
        ("ViT-L14", "openai", "did you mean ViT-L-14"),
        ("ViT-L-14", "opnai", "did you mean openai"),
        ("ViT-L-14", "nonsense", "it has openai, laion400m"),
        ("RN50", "random", "random:SEED"),
        ("RN50", "random:-1", "random:SEED"),
        ("RN50", "random:٣", "random:SEED"),
        ("RN50", "gone.safetensors", "no such file"),
        ("RN50", "embedded", "raffect-faces"),
        ("../../etc/passwd", "openai", "no such model"),
    ],
)
def test_wrong_names_are_one_clear_line(model, weights, match):
    with pytest.raises(RaffectError, match=match) as error:
        resolve(EncoderConfig(model=model, weights=weights))
    assert "\n" not in str(error.value)
