"""`raffect doctor` and `raffect models`: every failing line says how to fix it."""

import shutil
import socket
import sys

import pytest

from raffect.cli import main
from raffect.config import (
    DoctorConfig,
    EncoderConfig,
    ModelsListConfig,
    ModelsPullConfig,
    ModelsVerifyConfig,
)
from raffect.encoders import catalogue as models
from raffect.errors import RaffectError
from raffect.pipelines import doctor
from raffect.progress import Progress, format_bytes, format_seconds
from tests.helpers.banks import fill_bank, make_manifest

EMBEDDED = EncoderConfig(model="raffect-faces", weights="embedded")


@pytest.fixture(autouse=True)
def no_weights_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAFFECT_WEIGHTS", str(tmp_path / "weights"))


def test_the_doctor_names_what_is_missing_and_the_fix(tmp_path, prepared):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}))
    bank.commit_path(1).unlink()
    found = doctor.diagnose(DoctorConfig(data=prepared, bank=bank.path, start_ray=False))
    checks = {check.name: check for check in found.checks}
    assert checks["python"].ok
    assert checks["packages"].ok
    assert checks["data"].ok
    assert not checks["bank"].ok
    assert "run `raffect extract` again" in checks["bank"].text
    assert checks["bank"].line().startswith("FAIL bank")


def raise_always(error):
    """A function that raises an error, whatever it is called with."""

    def function(*args, **kwargs):
        raise error

    return function


def test_an_unexpected_error_is_a_failing_line(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", raise_always(RuntimeError("boom\nbang")))
    checks = doctor.diagnose(DoctorConfig(data=tmp_path / "gone", start_ray=False)).checks
    lines = {check.name: check.line() for check in checks}
    assert "boom bang" in lines["disk"]
    assert "raffect prepare" in lines["data"]
    assert all("\n" not in line for line in lines.values())


def test_the_doctor_sees_missing_weights(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    # A fault only of weights that were asked for
    assert main(["doctor", "--no-start-ray"]) == 0
    out = capsys.readouterr().out
    assert "note weights    default encoder: weights openai of ViT-L-14-quickgelu are not" in out
    assert "raffect models pull" in out
    assert "raffect-faces embedded" in out
    assert main(["doctor", "--no-start-ray", "--encoder.model", "ViT-B-32-quickgelu"]) == 1
    out = capsys.readouterr().out
    assert "FAIL weights    weights openai of ViT-B-32-quickgelu are not on this machine" in out


@pytest.mark.parametrize("weights", ["openai", "random:3"])
def test_the_doctor_looks_at_the_encoder_that_was_asked_for(weights):
    encoder = EncoderConfig(model="raffect-faces", weights=weights)
    first, _ = doctor._check_weights(encoder)
    assert first.ok
    assert first.text.startswith(f"encoder: raffect-faces {encoder.weights} ")


def test_the_doctor_names_pythondontwritebytecode(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "PYTHONDONTWRITEBYTECODE" in " ".join(c.text for c in doctor._check_packages())
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert "PYTHONDONTWRITEBYTECODE" not in " ".join(c.text for c in doctor._check_packages())


def test_the_doctor_starts_ray(local_ray):
    (check,) = doctor._check_ray()
    assert check.ok
    assert "ran a task" in check.text


def test_models_lists_what_is_here():
    lines = models.list_models(ModelsListConfig(present=True)).lines()
    assert any("raffect-faces" in line and line.startswith("*") for line in lines)
    lines = models.list_models(ModelsListConfig(pattern="l-14-quick")).lines()
    assert any(line.split() == ["ViT-L-14-quickgelu", "openai"] for line in lines)


def test_models_verify_prints_the_fingerprint():
    text = "\n".join(models.verify(ModelsVerifyConfig(encoder=EMBEDDED)).lines())
    assert "all finite" in text
    assert "caveat: embedded encoder" in text


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "ViT-B-32.pt"
    file.write_bytes(b"damaged on the way")
    url = f"https://example.org/{'0' * 64}/ViT-B-32.pt"
    monkeypatch.setattr(models, "resolve", lambda config: models_source(file))
    monkeypatch.setattr(models, "get_tag_config", lambda model, tag: {"url": url})
    with pytest.raises(RaffectError, match="its authors published 00000000"):
        models.verify(ModelsVerifyConfig(encoder=EncoderConfig(model="ViT-B-32-quickgelu")))


def models_source(file):
    from raffect.encoders.weights import Source

    return Source("ViT-B-32-quickgelu", "openai", file=file)


def test_pull_without_a_network_fails_in_a_moment(monkeypatch):
    unreachable = raise_always(OSError(101, "Network is unreachable"))
    monkeypatch.setattr(socket, "create_connection", unreachable)
    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RaffectError, match="huggingface.co is out of reach"):
        models.pull(ModelsPullConfig(encoder=EncoderConfig(model="ViT-B-16-quickgelu")))
    assert "already here" in models.pull(ModelsPullConfig(encoder=EMBEDDED)).lines()[0]
    random = EncoderConfig(model="ViT-B-16-quickgelu", weights="random:0")
    with pytest.raises(RaffectError, match="only a tag can be pulled"):
        models.pull(ModelsPullConfig(encoder=random))


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (59, "59 s"), (75, "1 min 15 s"), (3723, "1 h 02 min")]
)
def test_times_read_well(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 B"), (4_300_000_000, "4.3 GB"), (2_000_000_000_000, "2.0 TB")]
)
def test_sizes_read_well(size, text):
    assert format_bytes(size) == text


def test_progress_in_a_log_is_a_plain_line(capsys, monkeypatch):
    monkeypatch.setattr("raffect.progress.PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr("raffect.progress.FIRST_PLAIN_S", 0.0)
    with Progress("extract", 100) as progress:
        progress.advance(40)
    assert "extract: 40 of 100 frames" in capsys.readouterr().err
