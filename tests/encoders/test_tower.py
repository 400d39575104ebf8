"""The encoder: open_clip's vectors, one fingerprint for equal tensors, one shape, no pickles."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from raffect.bank.format import Bank
from raffect.config import EncoderConfig
from raffect.encoders.precision import computes_in
from raffect.encoders.tower import build_model, fingerprint, load_encoder
from raffect.encoders.weights import EMBEDDED_FOLDER, openai_digests, resolve
from raffect.errors import RaffectError
from tests.helpers.encoders import faces, reference

EMBEDDED = EncoderConfig(model="raffect-faces", weights="embedded")
SIZES = [(112, 112), (224, 224), (64, 64), (100, 150), (150, 100), (300, 260), (112, 112)]


def load_file_of(config, file, **changes):
    """The encoder of a configuration with its weights from a file."""
    return load_encoder(replace(config, weights=str(file), **changes), "cpu")


def contiguous(state):
    return {name: tensor.contiguous() for name, tensor in state.items()}


def test_vectors_are_those_of_encode_image(tiny_vit):
    frames = faces(*SIZES)
    expected = reference(tiny_vit, frames)
    ours = load_encoder(tiny_vit, "cpu").encode(frames)
    assert ours.dtype == np.float16
    assert ours.shape == (7, 24)
    # Stored as float16: half a unit in the last place is 2**-11 of a value.
    ours, atol = ours.astype(np.float32), 2**-10 * np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=2**-10, atol=atol)


def test_before_storage_the_difference_is_float32_noise(tiny_vit):
    frames = faces(*SIZES[:4])
    encoder = load_encoder(tiny_vit, "cpu")
    with torch.inference_mode():
        ours = encoder.forward(encoder.prepare(frames)).numpy()
    expected = reference(tiny_vit, frames)
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 2e-6


def test_the_embedded_encoder_loads_like_any_other_and_is_open_clips(tiny_vit):
    frames = faces((112, 112), (112, 112), (200, 150))
    ours = load_encoder(EMBEDDED, "cpu").encode(frames).astype(np.float32)
    np.testing.assert_allclose(ours, reference(EMBEDDED, frames), rtol=2e-3, atol=2e-3)


def test_coca_and_timm_towers_give_one_vector_a_frame(tiny_vit):
    for model in ("coca_tiny-vit", "tiny-vit-SigLIP"):
        config = EncoderConfig(model=model, weights="random:0", batch_size=2)
        frames = faces((112, 112))
        ours = load_encoder(config, "cpu").encode(frames).astype(np.float32)
        expected = reference(config, frames)
        # CoCa's own encode_image normalises; the bank holds raw vectors.
        if model.startswith("coca"):
            ours /= np.linalg.norm(ours, axis=1, keepdims=True)
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(ours, expected, atol=2e-3 * np.abs(expected).max())


def test_a_vector_does_not_depend_on_the_frames_beside_it(tiny_vit):
    encoder = load_encoder(tiny_vit, "cpu")
    frames = faces(*[(112, 112)] * 11)
    whole = encoder.encode(frames)
    for start, stop in ((0, 1), (3, 5), (4, 11)):
        assert np.array_equal(encoder.encode(frames[start:stop]), whole[start:stop])


@pytest.mark.parametrize("side", [112, 64])
def test_a_full_batch_has_the_bits_of_a_padded_one(side):
    """Also of pictures that are not resized, whose layout in memory was another one."""
    encoder = load_encoder(replace(EMBEDDED, batch_size=4), "cpu")
    frames = faces(*[(side, side)] * 4)
    with torch.inference_mode():
        full, padded = (encoder.forward(encoder.prepare(frames[:count])) for count in (4, 3))
    assert torch.equal(full[:3], padded[:3])


def test_an_unpadded_tail_would_depend_on_them(tiny_vit):
    """Negative control for the static shape: at other shapes bits change on some machines."""
    encoder = load_encoder(replace(tiny_vit, batch_size=64), "cpu")
    batch = encoder.prepare(faces(*[(112, 112)] * 64))
    assert batch.shape == (64, 3, 224, 224)
    with torch.inference_mode():
        padded, alone = encoder.forward(batch)[:1], encoder.forward(batch[:1])
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_no_frames_give_no_vectors(tiny_vit):
    assert load_encoder(tiny_vit, "cpu").encode([]).shape == (0, 24)


def test_the_same_tensors_have_one_fingerprint_whatever_file_they_came_in(tiny_vit, tmp_path):
    model = build_model(resolve(tiny_vit))
    state = model.state_dict()
    save_file(contiguous(state), tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": parallel}, tmp_path / "trained.pt")
    files = [tmp_path / name for name in ("w.safetensors", "w.pt", "trained.pt")]
    prints = {load_file_of(tiny_vit, file).identity.weights_sha256 for file in files}
    assert prints == {load_encoder(tiny_vit, "cpu").identity.weights_sha256}
    other = load_encoder(replace(tiny_vit, weights="random:1"), "cpu")
    assert other.identity.weights_sha256 not in prints


class Archive(torch.nn.Module):
    """A stand-in for OpenAI's archive: the same tensors and three numbers more, as TorchScript."""

    def __init__(self, model):
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)
        for name, tensor in model.state_dict().items():
            parent = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, torch.nn.Module())
                parent = parent._modules[part]
            parent.register_buffer(leaf, tensor.clone())
        del self.inner
        extras = {"input_resolution": 224, "context_length": 8, "vocab_size": 49408}
        for name, value in extras.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Draws(TorchDispatchMode):
    """Counts what torch's kernels draw."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("normal_", "uniform_"))
        return func(*args, **(kwargs or {}))


def test_weights_of_a_file_are_not_drawn_first_and_replace_everything(tiny_vit, tmp_path):
    with Draws() as draws:
        model = build_model(resolve(tiny_vit))
    assert draws.count
    save_file(contiguous(model.state_dict()), tmp_path / "weights.safetensors")
    source = resolve(replace(tiny_vit, weights=str(tmp_path / "weights.safetensors")))
    with Draws() as draws:
        loaded = build_model(source)
    assert not draws.count
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    found = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_openais_torchscript_archive_is_read(tiny_vit, tmp_path, monkeypatch):
    file = tmp_path / "openai-tiny.pt"
    torch.jit.script(Archive(build_model(resolve(tiny_vit)))).save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr("raffect.encoders.weights.openai_digests", lambda: frozenset([digest]))
    identity = load_file_of(tiny_vit, file).identity
    assert identity.weights_sha256 == load_encoder(tiny_vit, "cpu").identity.weights_sha256
    with pytest.raises(RaffectError, match="tiny-vit-quickgelu"):
        load_file_of(tiny_vit, file, model="tiny-vit")


def test_quickgelu_models_really_compute_quickgelu(tiny_vit):
    kinds = {}
    for model in ("tiny-vit", "tiny-vit-quickgelu"):
        tower = build_model(resolve(replace(tiny_vit, model=model))).visual
        kinds[model] = {type(module).__name__ for module in tower.modules()}
    assert "QuickGELU" in kinds["tiny-vit-quickgelu"]
    assert "QuickGELU" not in kinds["tiny-vit"]


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_pickle_with_code_is_refused_and_does_not_run(tiny_vit, tmp_path):
    for name, save in (
        ("torch.pt", lambda file: torch.save({"state_dict": Evil(tmp_path / "ran")}, file)),
        ("plain.bin", lambda file: file.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))),
    ):
        save(tmp_path / name)
        with pytest.raises(RaffectError, match=f"{name}: cannot be loaded"):
            load_file_of(tiny_vit, tmp_path / name)
    assert not (tmp_path / "ran").exists()


class Writer(torch.nn.Module):
    """A TorchScript module that writes a file when it is loaded."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.target = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.target)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_any_other_torchscript_archive_is_refused_and_its_code_does_not_run(tiny_vit, tmp_path):
    file, target = tmp_path / "openai-evil.pt", tmp_path / "ran"
    torch.jit.script(Writer(str(target))).save(str(file))
    target.unlink(missing_ok=True)
    with pytest.raises(RaffectError, match="not one of OpenAI's"):
        load_file_of(tiny_vit, file)
    assert not target.exists()
    torch.jit.load(str(file))
    assert target.exists(), "this archive carries no code that runs, so the test proves nothing"


def test_the_archives_that_openai_published_are_known():
    digests = openai_digests()
    assert len(digests) == 9
    assert any(digest.startswith("b8cca3fd41ae0c99") for digest in digests)  # ViT-L-14.pt


def test_files_that_do_not_fit_are_one_clear_line(tiny_vit, tmp_path):
    whole = (EMBEDDED_FOLDER / "raffect-faces.safetensors").read_bytes()
    (tmp_path / "other-model.safetensors").write_bytes(whole)
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.bin").write_bytes(b"")
    for name in ("other-model.safetensors", "truncated.safetensors", "text.pt", "empty.bin"):
        with pytest.raises(RaffectError, match=f"{name}: cannot be loaded") as error:
            load_file_of(tiny_vit, tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_file_without_one_of_the_models_tensors_is_refused(tiny_vit, tmp_path):
    state = contiguous(build_model(resolve(tiny_vit)).state_dict())
    for name in ("visual.class_embedding", "ln_final.bias", "logit_scale"):
        save_file({key: state[key] for key in state if key != name}, tmp_path / "w.safetensors")
        with pytest.raises(RaffectError, match=f"w.safetensors: cannot be loaded .*{name}"):
            load_file_of(tiny_vit, tmp_path / "w.safetensors")


def test_arrays_of_numpy_which_open_clip_loads_unchecked_are_refused(tiny_vit, tmp_path):
    np.savez(tmp_path / "w.npz", **{"params/t": np.zeros(1)})
    with pytest.raises(RaffectError, match=r"w\.npz: arrays of numpy; expected a \.safetensors"):
        load_file_of(tiny_vit, tmp_path / "w.npz")


def test_weights_with_nan_are_refused(tmp_path):
    state = load_file(EMBEDDED_FOLDER / "raffect-faces.safetensors")
    state["visual.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(RaffectError, match=r"visual.conv1.weight holds NaN"):
        load_file_of(EMBEDDED, tmp_path / "w.safetensors")


def test_random_weights_follow_their_seed_and_leave_the_callers_random_state_alone(tiny_vit):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = load_encoder(tiny_vit, "cpu").identity
    assert torch.rand(1) == expected
    assert load_encoder(tiny_vit, "cpu").identity == one


def test_running_out_of_memory_halves_the_batch_and_goes_on(tiny_vit, monkeypatch, caplog):
    encoder = load_encoder(tiny_vit, "cpu")
    frames = faces(*[(112, 112)] * 6)
    expected = encoder.encode(frames)
    real, failures = encoder.forward, iter([True])

    def once(batch):
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    def always(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "forward", once)
    found, expected = encoder.encode(frames).astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
    assert encoder.batch_size == 2
    assert "out of memory" in caplog.text
    monkeypatch.setattr(encoder, "forward", always)
    with pytest.raises(RaffectError, match="out of memory with one picture"):
        encoder.encode(frames)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 0.02), ("bfloat16", 0.1)])
def test_half_precision_on_request_is_close_and_another_identity(tiny_vit, precision, tolerance):
    frames = faces((112, 112))
    names = (precision, "float32")
    half, full = (load_encoder(replace(tiny_vit, precision=name), "cpu") for name in names)
    assert half.identity.differences(full.identity) == [f"precision: {precision} against float32"]
    difference = np.abs(half.encode(frames).astype(np.float32) - full.encode(frames)).max()
    assert 0 < difference < tolerance * np.abs(full.encode(frames)).max()


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_half_that_slows_a_cpu_is_said(tiny_vit, is_fast, monkeypatch, caplog):
    monkeypatch.setattr("raffect.encoders.precision.computes_in", lambda name: is_fast)
    load_encoder(replace(tiny_vit, precision="bfloat16"), "cpu")
    assert ("bfloat16 on this CPU, which has no instructions" in caplog.text) == (not is_fast)
    caplog.clear()
    load_encoder(tiny_vit, "cpu")
    assert "on this CPU" not in caplog.text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if "sse2" in flags:  # another kind of processor has other names
        assert computes_in("bfloat16") == bool(flags & {"avx512bw", "avx_ne_convert"})
    assert computes_in("float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that has no device")
def test_a_device_that_takes_no_encoder_is_one_clear_error(tiny_vit):
    line = r"tiny-vit-quickgelu cannot be put on cuda \(.+\); see `nvidia-smi`"
    with pytest.raises(RaffectError, match=line):
        load_encoder(tiny_vit, "cuda")


def test_weights_of_another_resolution_are_refused_not_stretched(tiny_vit, tmp_path):
    state = build_model(resolve(tiny_vit)).state_dict()
    save_file(contiguous(state), tmp_path / "own.safetensors")
    assert load_file_of(tiny_vit, tmp_path / "own.safetensors").tower.grid_size == (7, 7)
    # A grid of 12 x 12 instead of 7 x 7, as at 384 pixels.
    position = state["visual.positional_embedding"]
    larger = torch.cat([position, position[1:].repeat(2, 1)])[: 1 + 12 * 12]
    changed = state | {"visual.positional_embedding": larger}
    save_file(contiguous(changed), tmp_path / "larger.safetensors")
    line = "larger.safetensors: cannot be loaded .*positional_embedding"
    with pytest.raises(RaffectError, match=line):
        load_file_of(tiny_vit, tmp_path / "larger.safetensors")


def test_a_bank_of_the_earlier_arithmetic_is_refused_and_embedded_ones_go_on(tiny_vit, tmp_path):
    now = load_encoder(tiny_vit, "cpu").identity
    assert now.arithmetic == 2
    # The weights' fingerprint is of the file's values, which the text tower's weights must yield.
    assert now.weights_sha256 == fingerprint(build_model(resolve(tiny_vit)).visual)
    bank = Bank(tmp_path / "bank")
    bank.claim(replace(now, arithmetic=1))
    with pytest.raises(RaffectError, match="arithmetic: 1 against 2; use the bank's encoder or a"):
        bank.claim(now)
    assert load_encoder(EMBEDDED, "cpu").identity.arithmetic == 1
