"""The frozen image tower: load it, identify it exactly, and turn uint8 frames into vectors."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import open_clip
import torch
from open_clip.model import get_model_preprocess_cfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raffect.bank.format import Identity
from raffect.config import EMBEDDED_MODEL, EncoderConfig
from raffect.encoders.attention import arithmetic_of, fuse
from raffect.encoders.precision import choose_precision
from raffect.encoders.preprocess import Preprocess
from raffect.encoders.timm_tower import build_timm, measure_dim, read_timm_preprocess
from raffect.encoders.weights import (
    Source,
    explain_unreadable,
    is_timm,
    is_torchscript,
    model_configs,
    require_openais,
    resolve,
)
from raffect.errors import RaffectError

Clip: TypeAlias = Any  # CLIP, CustomTextCLIP or CoCa, which share no base class but nn.Module
CUDA_BATCH, CPU_BATCH = 256, 8
_PROBE_S = {"cuda": 0.5, "cpu": 0.1}
"""Seconds of a probe; on a CPU, which it shares with readers, a longer one is no better."""
_DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"}
"""Functions of torch that fill a new model's tensors with random numbers."""
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Numbers in OpenAI's archives that are not part of the model."""


class Encoder:
    """A frozen image tower on one device.

    Every batch has one static shape, its tail padded, because the batch's shape changes the last
    bits of a vector (docs/decisions.md); so a frame's vector does not depend on the frames beside
    it.

    Attributes:
        identity: What a bank records of it.
        preprocess: Its transform.
        device: Where it runs.
        batch_size: Pictures a step; halved, with a warning, if CUDA runs out of memory.
    """

    def __init__(
        self,
        tower: nn.Module,
        identity: Identity,
        preprocess: Preprocess,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.tower = tower
        self.identity = identity
        self.preprocess = preprocess
        self.device = device
        self.batch_size = batch_size
        self._dtype = getattr(torch, identity.precision)

    def encode(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Encode frames of any sizes.

        Args:
            frames: uint8 arrays of shape (height, width, 3), RGB.

        Returns:
            Raw vectors, not normalised: float16, shape (len(frames), dim).
        """
        while True:
            try:
                return self._encode(frames)
            except torch.OutOfMemoryError:
                self._halve_batch()

    def _halve_batch(self) -> None:
        if self.batch_size == 1:
            what = f"{self.device}: out of memory with one picture a step"
            remedy = "use a smaller --encoder.model or free the device"
            raise RaffectError(f"{what}; {remedy}") from None
        self.batch_size //= 2
        message = "%s is out of memory, going on with %d pictures a step"
        logging.getLogger("raffect").warning(message, self.device, self.batch_size)
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _encode(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        out = torch.empty(len(frames), self.identity.dim, dtype=torch.float16, device=self.device)
        for start in range(0, len(frames), self.batch_size):
            batch = self.prepare(frames[start : start + self.batch_size])
            out[start : start + self.batch_size] = self.forward(batch)[: len(out) - start]
        # The only wait for the device, where all frames are of one size.
        return out.cpu().numpy()

    def prepare(self, frames: Sequence[np.ndarray]) -> Tensor:
        """The tower's input for up to a batch of frames, padded with black to the static shape.

        Returns:
            Shape (batch_size, 3, size, size) on the device, in the tower's precision.
        """
        size = self.preprocess.size
        frames = [self.preprocess.shrink(frame) for frame in frames]
        shapes = [frame.shape for frame in frames]
        # A batch of one size, which is almost every batch, is padded first and takes no copy.
        if len(set(shapes)) == 1:
            return self.preprocess.normalise(self._enlarge(frames, self.batch_size), self._dtype)
        # Otherwise frames of each size are resized together, and put where they belong.
        batch = torch.zeros(self.batch_size, 3, size, size, device=self.device)
        for shape in dict.fromkeys(shapes):
            rows = [row for row, other in enumerate(shapes) if other == shape]
            batch[rows] = self._enlarge([frames[row] for row in rows], len(rows))
        return self.preprocess.normalise(batch, self._dtype)

    def _enlarge(self, frames: Sequence[np.ndarray], count: int) -> Tensor:
        """Frames of one size, and black ones up to a count, as the encoder's input.

        Returns:
            float32 pixels on the device, shape (count, 3, size, size).
        """
        shape, pinned = (count, *frames[0].shape), self.device.type == "cuda"
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        np.stack(frames, out=pixels.numpy()[: len(frames)])
        pixels[len(frames) :] = 0
        return self.preprocess.resize(pixels.to(self.device, non_blocking=True))

    def forward(self, batch: Tensor) -> Tensor:
        """Vectors of a prepared batch in the tower's precision, shape (batch_size, dim)."""
        out = self.tower(batch)
        return out[0] if isinstance(out, tuple) else out  # CoCa's tower also returns its tokens

    @torch.inference_mode()
    def probe(self) -> float:
        """Frames/s of the bare tower on tensors that are ready.

        The pipeline around it is measured against that.
        """
        size = self.preprocess.size
        # Not black: an H200 is 7 % faster on that, since fewer bits change.
        shape = (self.batch_size, size, size, 3)
        noise = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        if self.device.type == "cuda" or self.tower._compiled_call_impl is not None:
            self.encode(noise[:1])  # finds the batch that fits the device, and compiles
        batch = self.prepare(noise[: self.batch_size])
        steps, elapsed = 1, self._time_steps(batch, 1)
        probe_s = _PROBE_S[self.device.type]
        if elapsed < 4 * probe_s:  # the first one warms up; a slow one is worth keeping
            steps = max(1, int(probe_s / elapsed))
            elapsed = self._time_steps(batch, steps)
        return steps * self.batch_size / elapsed

    def _time_steps(self, batch: Tensor, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.forward(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def load_encoder(config: EncoderConfig, device: str | torch.device | None = None) -> Encoder:
    """Load an image tower; its text tower is dropped.

    Args:
        config: Model, weights, precision and batch size.
        device: ``"cuda"``, ``"cpu"`` ...; CUDA where there is one if None.

    Raises:
        RaffectError: If the weights are missing, damaged, not this model's, or were trained with
            another activation.
    """
    # Weights and transform, and what a bank records of them.
    source = resolve(config)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_cuda, precision = device.type == "cuda", choose_precision(config.precision, device)
    visual, preprocess, record, dim = _load_tower(source)
    identity = Identity(
        model=source.model,
        weights_sha256=fingerprint(visual),
        weights=source.name,
        preprocess=record,
        precision=precision,
        dim=dim,
        caveat=source.caveat,
        arithmetic=arithmetic_of(visual),
    )
    # The tower on its device, in fewer kernels.
    tower = _put(fuse(visual), device, precision, source.model)
    if config.compile:
        tower.compile(dynamic=False)  # every batch has one shape
    if on_cuda:
        # float32 is not rounded to TF32, but for the resize, which asks for that and loses nothing.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch_size = config.batch_size or (CUDA_BATCH if on_cuda else CPU_BATCH)
    return Encoder(tower, identity, preprocess, device, batch_size)


def _load_tower(source: Source) -> tuple[nn.Module, Preprocess, dict[str, Any], int]:
    """An image tower in float32 on the CPU, its transform and its record, its vector's length."""
    if is_timm(source.model):
        visual = build_timm(source)
        if source.file is not None:
            _require_finite(visual, source.file)
        preprocess, record = read_timm_preprocess(source, visual)
        return visual, preprocess, record, measure_dim(visual, source.model, preprocess.size)
    model = build_model(source)
    preprocess = _read_preprocess(model).seen_as(source.view)
    dim = _output_dim(model, preprocess.size)
    return model.visual, preprocess, preprocess.as_dict(), dim


def _put(tower: nn.Module, device: torch.device, precision: str, name: str) -> nn.Module:
    """A tower on its device, frozen and in evaluation mode."""
    try:
        return tower.to(device, getattr(torch, precision)).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        # No memory left, a driver that is too old, or a torch without CUDA.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        remedy = "see `nvidia-smi` and `raffect doctor`, or use --device cpu"
        raise RaffectError(f"{name} cannot be put on {device} ({reason}); {remedy}") from error


def build_model(source: Source) -> Clip:
    """The whole open_clip model in float32 on the CPU, with its weights.

    Raises:
        RaffectError: If the file is damaged, holds code, or does not fit the model.
    """
    make_known(source.model)
    # open_clip warns that no weights are loaded; they are loaded below.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    # Weights of a file replace all numbers; drawing them first takes 2.4 s for a ViT-L/14.
    draws = contextlib.nullcontext() if source.file is None else _WithoutDraws()
    try:
        with torch.random.fork_rng(devices=[]), draws:
            torch.manual_seed(source.seed or 0)
            model: Clip = open_clip.create_model(
                source.model,
                pretrained=None,
                pretrained_text=False,
                force_preprocess_cfg=dict(source.preprocess),
            )
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        what = f"--encoder.model {source.model}: open_clip cannot build it ({reason})"
        remedy = "install what it asks for or use another model"
        raise RaffectError(f"{what}; {remedy}") from error
    finally:
        root.setLevel(level)
    if source.file is not None:
        _load_weights(model, source.file)
        _require_finite(model.visual, source.file)
    return model


class _WithoutDraws(TorchFunctionMode):
    """Leaves what a model is to be initialised with at random as its memory happens to be."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def make_known(model: str) -> None:
    """Let open_clip know the embedded encoder by its name; it knows all others itself."""
    if model == EMBEDDED_MODEL and model not in open_clip.list_models():
        open_clip.add_model_config(model_configs()[model])


def fingerprint(tower: nn.Module) -> str:
    """SHA-256 over names and float32 values of the loaded tensors.

    The same weights have the same fingerprint, whatever file they came in.
    """
    return digest_tensors(tower.state_dict())


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """`fingerprint` of tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load_weights(model: Clip, file: Path) -> None:
    """Load a file's weights into a model; no code of the file's runs."""
    try:
        if is_torchscript(file):
            require_openais(file)
            state = torch.jit.load(str(file), map_location="cpu").state_dict()
            kept = {name: value for name, value in state.items() if name not in _OPENAI_EXTRAS}
            model.load_state_dict(kept)
        else:
            with _without_stretching(model.visual):
                open_clip.load_checkpoint(model, str(file), strict=True, weights_only=True)
    except RaffectError:
        raise
    except Exception as error:
        what = f"--encoder.weights {file}: cannot be loaded ({explain_unreadable(error)[:200]})"
        expected = "weights of this very model as .safetensors, state dict or OpenAI's .pt"
        raise RaffectError(f"{what}; expected {expected}") from error


@contextlib.contextmanager
def _without_stretching(tower: nn.Module) -> Generator[None]:
    """Keep open_clip from stretching the position embedding of a file for another resolution.

    It does so without a warning where it finds the grid of the tower.
    """
    grid = tower.__dict__.pop("grid_size", None)
    try:
        yield
    finally:
        if grid is not None:
            tower.grid_size = grid


def _require_finite(tower: nn.Module, file: Path) -> None:
    for name, tensor in tower.state_dict().items():
        if not torch.isfinite(tensor).all():
            what = f"--encoder.weights {file}: tensor visual.{name} holds NaN or infinity"
            raise RaffectError(f"{what}; download the file again")


def _read_preprocess(model: Clip) -> Preprocess:
    config = get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        what = f"this encoder takes {height}x{width} pictures; raffect has square ones only"
        raise RaffectError(f"{what}: use another --encoder.model")
    return Preprocess(
        size=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
    )


def _output_dim(model: Clip, size: int) -> int:
    """Length of a vector; where the tower does not say, of that of a black picture."""
    if isinstance(known := getattr(model.visual, "output_dim", None), int):
        return known
    with torch.inference_mode():
        out = model.eval().visual(torch.zeros(1, 3, size, size))
    return int((out[0] if isinstance(out, tuple) else out).shape[-1])
