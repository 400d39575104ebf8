"""`raffect doctor --gpu`: its checks pass on a device that is right, and see one that is not."""

import math

import pytest
import torch

from raffect.cli import main
from raffect.config import DoctorConfig, EncoderConfig
from raffect.heads import fused
from raffect.heads.fused_step import FusedStep
from raffect.heads.learner import Learner
from raffect.pipelines import doctor, gpu_checks
from tests.helpers.triton_interpreter import interpret

CPU = torch.device("cpu")
EMBEDDED = EncoderConfig(model="raffect-faces", weights="embedded")


@pytest.fixture(autouse=True)
def small_heads(monkeypatch):
    """On a GPU heads are as wide as the paper's."""
    monkeypatch.setattr(gpu_checks, "DIM", 64)


def found_by(run):
    return {found.name: found for found in run}


def test_every_check_passes_on_the_cpu_and_states_its_number_and_limit():
    found = {}
    for run in gpu_checks.checks(EMBEDDED, CPU).values():
        found |= found_by(run())
    assert gpu_checks.LIMITS.keys() - found.keys() == {"kernels forward", "kernels weights"}
    for check in found.values():
        assert check.ok, check.line
        assert f"{check.value:.1e}, at most {check.limit:g}" in check.line
    assert found["encode float16"].value > 0  # rounding is seen


def test_a_value_that_is_not_a_number_never_passes():
    assert not gpu_checks.Found("step", math.nan, "").ok


def test_a_device_whose_vectors_are_wrong_is_seen(monkeypatch):
    encode, factors = gpu_checks._encode, iter([1.0, 1.0001, 1.01])
    monkeypatch.setattr(gpu_checks, "_encode", lambda *args: encode(*args) * next(factors))
    found = found_by(gpu_checks.compare_encoding(EMBEDDED, CPU))
    assert not found["encode float32"].ok
    assert not found["encode float16"].ok


def test_steps_that_differ_from_single_ones_are_seen(monkeypatch):
    real = Learner._gather_and_step

    def skip_one(self, samples):
        if int(self.counter) == 5:
            self.heads.rows[0, 0] += 1e-3
        real(self, samples)

    monkeypatch.setattr(Learner, "_gather_and_step", skip_one)
    assert not found_by(gpu_checks.compare_steps(CPU))["graph"].ok


def test_kernels_that_the_first_batch_refuses_are_seen(monkeypatch):
    def fail(learner):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fused, "serves", fused.fits)
    monkeypatch.setattr(fused, "FusedStep", fail)
    found = found_by(gpu_checks.compare_steps(CPU))
    assert found["kernels"].value == 2
    assert not found["kernels"].ok
    assert found["graph"].ok


def test_three_steps_by_kernels_show_their_difference_beside_the_tolerance(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from raffect.heads import fused_backward, fused_forward, fused_kernels, fused_update

    interpret(monkeypatch, fused_kernels, fused_forward, fused_backward, fused_update)
    monkeypatch.setattr(gpu_checks, "DIM", 16)
    monkeypatch.setattr(gpu_checks, "HEADS", 1)
    found = found_by(gpu_checks.compare_kernels(CPU))
    forward, weights = found["kernels forward"], found["kernels weights"]
    assert 0 < forward.value < forward.limit == fused.FORWARD_TOLERANCE
    assert 0 < weights.value < weights.limit == fused.TOLERANCE
    assert "1 heads, 16 wide, 3 float32 steps on cpu" in weights.line
    assert weights.line.endswith(f"{weights.value:.1e}, at most 0.02")


def test_kernels_that_go_wrong_behind_the_first_batch_are_seen(monkeypatch):
    # Which the guard of the first batch cannot see
    pytest.importorskip("triton", reason="Triton is not installed")

    def step(self, batch, target):
        self.learner.eager_step(batch, target)
        if int(self.learner.counter) == 3:
            self.learner.heads.rows *= 1.01

    monkeypatch.setattr(FusedStep, "step", step)
    found = found_by(gpu_checks.compare_kernels(CPU))
    assert found["kernels forward"].value == 0
    assert not found["kernels weights"].ok
    assert "(rows of layers." in found["kernels weights"].text


def test_without_a_gpu_one_line_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    assert main(["doctor", "--gpu", "--no-start-ray"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL cuda")]
    assert len(failed) == 1
    assert "torch sees no CUDA device here, nothing was checked" in failed[0]
    assert lines[-1].endswith("check(s) failed")


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_check_gpu", lambda: iter(()))

    def broken():
        raise RuntimeError("no kernel image")
        yield

    bad = gpu_checks.Found("group", 1.0, "gloo")
    runs = {"step": broken, "group": lambda: iter([bad])}
    monkeypatch.setattr(gpu_checks, "checks", lambda encoder, device: runs)
    found = doctor.diagnose(DoctorConfig(gpu=True, start_ray=False, encoder=EMBEDDED))
    lines = [check.line() for check in found.checks][-2:]
    assert lines[0].startswith("FAIL step       RuntimeError: no kernel image")
    assert lines[1].startswith("FAIL group      gloo: 1.0e+00, at most 0")
