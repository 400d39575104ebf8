"""Where an encoder's weights come from: found without torch and the network, in under a second.

Weights named by a tag are looked for in raffect's own folder (``$RAFFECT_WEIGHTS``, or
``~/.cache/raffect/weights``, as ``<model>--<tag>.safetensors|.pt|.bin``), then where open_clip and
the Hugging Face hub keep theirs. Nothing is downloaded except by `raffect models pull`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shlex
import sys
import types
import zipfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raffect.config import EMBEDDED_MODEL, TIMM_PREFIX, EncoderConfig
from raffect.errors import RaffectError, did_you_mean
from raffect.storage.paths import sha256_of
from raffect.storage.records import parse_object

if TYPE_CHECKING:
    from raffect.bank.records import Identity

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED_CAVEAT = "embedded encoder, not CLIP"
RANDOM_CAVEAT = "random weights"
SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
_HF_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class Source:
    """Weights that can be loaded.

    Attributes:
        model: open_clip model name, or that of one of timm's.
        name: How they were asked for, without folders.
        file: Their file; None for random weights.
        seed: Seed of random weights.
        caveat: What every result that rests on them must state; empty for pretrained weights.
        quick_gelu: Activation they were trained with, where known.
        preprocess: Mean, std, interpolation and resize mode, as far as their tag gives them.
        image_size: Side of the input, of timm's; 0 is the model's own.
        view: As of `raffect.config.EncoderConfig`.
    """

    model: str
    name: str
    file: Path | None = None
    seed: int | None = None
    caveat: str = ""
    quick_gelu: bool | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0
    view: str = ""


def explain_unreadable(error: Exception) -> str:
    """Why torch does not load a file of weights, in one line.

    torch, safetensors, pickle and zipfile have errors of their own; all mean an unusable file.
    """
    reason = " ".join(str(error).split())
    if "Unsupported operand" in reason or isinstance(error, KeyError):
        return "is not a file of tensors as torch writes them, or is damaged"
    if any(sign in reason for sign in ("weights_only", "Weights only", "WeightsUnpickler")):
        return "holds Python objects instead of tensors, which raffect never loads"
    return reason or type(error).__name__


def weights_folder() -> Path:
    """Where raffect looks for weights first."""
    return Path(os.environ.get("RAFFECT_WEIGHTS") or Path.home() / ".cache" / "raffect" / "weights")


def resolve(config: EncoderConfig) -> Source:
    """Find weights and check that they fit the model's activation.

    Raises:
        RaffectError: If the model or tag is unknown, the file is missing, or the activation is not
            the one that the weights were trained with.
    """
    if is_timm(config.model):
        # Here, since timm takes torch and seconds to import.
        from raffect.encoders.timm_models import find_timm

        return find_timm(config)
    model_config = read_model_config(config.model)
    _require_own_size(config, model_config)
    source = replace(_find(config), view=config.view)
    # The embedded encoder has one set of weights, which fit it.
    if config.model == EMBEDDED_MODEL and source.file and source.file.parent == EMBEDDED_FOLDER:
        return source
    # The wrong activation loads without an error and gives wrong features.
    quick = bool(model_config.get("quick_gelu", False))
    if source.quick_gelu is not None and source.quick_gelu != quick:
        base = config.model.removesuffix("-quickgelu")
        right = f"{base}-quickgelu" if source.quick_gelu else base
        computed, trained = ("QuickGELU", "plain GELU") if quick else ("plain GELU", "QuickGELU")
        what = f"--encoder.model {config.model} computes {computed}"
        why = f"but the weights {source.name} were trained with {trained}"
        raise RaffectError(f"{what}, {why}; use --encoder.model {right}")
    return source


def is_timm(model: str) -> bool:
    """Whether a name is of one of timm's towers."""
    return model.startswith(TIMM_PREFIX)


def view_side(side: int, view: str) -> int:
    """Side to which pictures are resized in a view, of which the centre is cropped as always.

    So ``crop:0.8`` shows the middle 80 % of each side, at the encoder's full resolution.
    """
    return math.floor(side / float(view.removeprefix("crop:"))) if "crop" in view else side


def encoder_of(identity: Identity, weights: str = "") -> EncoderConfig:
    """The settings with which an encoder was loaded; ``weights`` may name its file."""
    size = identity.preprocess["size"] if is_timm(identity.model) else 0
    return EncoderConfig(
        model=identity.model,
        weights=weights or identity.weights,
        precision=identity.precision,
        image_size=int(str(size)),
        view=str(identity.preprocess.get("view", "")),
    )


def _require_own_size(config: EncoderConfig, model_config: dict[str, Any]) -> None:
    """Refuse another input of an open_clip model than its own."""
    own = model_config["vision_cfg"].get("image_size", 224)
    if config.image_size not in (0, own):
        what = f"--encoder.image-size {config.image_size}: {config.model} takes {own} pixels"
        raise RaffectError(f"{what}; only timm: models take other sizes, leave it out")


def read_model_config(model: str) -> dict[str, Any]:
    """open_clip's configuration of a model, or the embedded encoder's.

    Raises:
        RaffectError: If there is no such model; suggests near names.
    """
    file = model_configs().get(model)
    if file is None:
        hint = did_you_mean(model, model_configs(), most=3, cutoff=0.5)
        what = f"--encoder.model {model}: no such model{hint}"
        raise RaffectError(f"{what}; `raffect models list` shows all")
    return parse_object(file.read_bytes(), file, "install raffect and open_clip_torch again")


@cache
def model_configs() -> dict[str, Path]:
    """Model name -> configuration file, sorted by name."""
    files = {file.stem: file for file in (_open_clip_folder() / "model_configs").glob("*.json")}
    files[EMBEDDED_MODEL] = EMBEDDED_FOLDER / f"{EMBEDDED_MODEL}.json"
    return dict(sorted(files.items()))


def list_tags(model: str) -> list[str]:
    """Weight tags that open_clip knows for a model."""
    if model == EMBEDDED_MODEL:
        return ["embedded"]
    return _tables().list_pretrained_tags_by_model(model)


def get_tag_config(model: str, tag: str) -> dict[str, Any]:
    """open_clip's entry for a tag: address, activation, preprocess; empty if it has no such tag."""
    return _tables().get_pretrained_cfg(model, tag)


def find_tag_file(model: str, tag: str) -> Path | None:
    """The file on this machine that holds a tag's weights."""
    if model == EMBEDDED_MODEL and tag == "embedded":
        return EMBEDDED_FOLDER / f"{EMBEDDED_MODEL}.safetensors"
    entry = get_tag_config(model, tag)
    # Our own folder first, then the caches of open_clip and of the hub.
    candidates = [weights_folder() / f"{model}--{tag}{suffix}" for suffix in SUFFIXES]
    if url := entry.get("url"):
        candidates.append(Path.home() / ".cache" / "clip" / url.rsplit("/", 1)[-1])
    if hub := entry.get("hf_hub"):
        candidates += _hub_files(hub)
    return next((file for file in candidates if file.is_file()), None)


def _find(config: EncoderConfig) -> Source:
    """The weights that ``--encoder.weights`` names, in any of its four forms."""
    model, weights = config.model, config.weights
    # In this order: a file may have any name, a tag is looked for last.
    if weights == "random" or weights.startswith("random:"):
        return random_source(model, weights)
    if weights == "embedded":
        if model != EMBEDDED_MODEL:
            what = f"--encoder.weights embedded belongs to --encoder.model {EMBEDDED_MODEL}"
            raise RaffectError(f"{what}, not to {model}")
        return Source(model, weights, file=find_tag_file(model, "embedded"), caveat=EMBEDDED_CAVEAT)
    if Path(weights).suffix in SUFFIXES or os.sep in weights:
        return _from_file(model, Path(weights))
    return _from_tag(model, weights)


def random_source(model: str, weights: str) -> Source:
    """Weights named ``random:SEED``."""
    seed = weights.partition(":")[2]
    if not (seed.isascii() and seed.isdigit()):
        expected = "random:SEED with a whole number, e.g. random:0"
        raise RaffectError(f"--encoder.weights {weights}: expected {expected}")
    return Source(model, weights, seed=int(seed), caveat=RANDOM_CAVEAT)


def _from_tag(model: str, tag: str) -> Source:
    """Weights of one of open_clip's tags."""
    tags = list_tags(model)
    if tag not in tags:
        hint = did_you_mean(tag, tags) or f" (it has {', '.join(tags) or 'none'})"
        if not tags:
            hint += f"; try --encoder.model {model.removesuffix('-quickgelu')}"
        what = f"--encoder.weights {tag}: {model} has no such tag{hint}"
        raise RaffectError(f"{what}. A local file or random:SEED works too")
    file = find_tag_file(model, tag)
    if file is None:
        raise RaffectError(missing_message(model, tag))
    entry = get_tag_config(model, tag)
    quick, preprocess = entry.get("quick_gelu", False), _tag_preprocess(entry)
    return Source(model, tag, file=file, quick_gelu=quick, preprocess=preprocess)


def _from_file(model: str, file: Path) -> Source:
    """Weights in a local file.

    Activation and transform are those of the tag that ``<model>--<tag>`` names, else those that all
    tags of the model agree on.
    """
    # open_clip reads arrays of numpy without a look at whether they are all of the model's.
    is_numpy = file.suffix in (".npz", ".npy")
    if is_numpy or not file.is_file():
        found = "arrays of numpy" if is_numpy else "no such file"
        expected = "a .safetensors, a PyTorch state dict or OpenAI's .pt"
        raise RaffectError(f"--encoder.weights {file}: {found}; expected {expected}")
    if model == EMBEDDED_MODEL:
        return Source(model, file.name, file=file, caveat=EMBEDDED_CAVEAT)
    # The tags that it may be of.
    tags = list_tags(model)
    openai = is_torchscript(file) or "openai" in file.name.lower()
    named = "openai" if openai else file.stem.partition("--")[2]
    entries = [get_tag_config(model, tag) for tag in ([named] if named in tags else tags)]
    # The activation, where they agree; None lets the model's own pass.
    quicks = {True} if openai else {entry.get("quick_gelu", False) for entry in entries}
    quick = quicks.pop() if len(quicks) == 1 else None
    # The transform, in which they have to agree.
    preprocesses = [_tag_preprocess(entry) for entry in entries] or [{}]
    if any(other != preprocesses[0] for other in preprocesses):
        why = f"the tags of {model} resize and normalise differently, so the file's must be known"
        remedy = f"name it {model}--TAG{file.suffix} with one of {', '.join(tags)}"
        raise RaffectError(f"--encoder.weights {file}: {why}; {remedy}")
    return Source(model, file.name, file=file, quick_gelu=quick, preprocess=preprocesses[0])


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, which is how OpenAI ships CLIP."""
    if not zipfile.is_zipfile(file):
        return False
    # A state dict is a zip file too, but holds no constants of a program.
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def require_openais(file: Path) -> None:
    """Refuse a TorchScript archive that is not byte for byte one of OpenAI's.

    Loading an archive runs the code that it contains.

    Raises:
        RaffectError: If its SHA-256 is in no address of open_clip's table.
    """
    digest = sha256_of(file)
    if digest not in openai_digests():
        kind = "a TorchScript archive, which may bring code along, and not one of OpenAI's"
        what = f"--encoder.weights {file}: {kind} (SHA-256 {digest[:12]}...)"
        expected = "weights of this very model as .safetensors or a state dict"
        raise RaffectError(f"{what}; download it again, or expected {expected}")


@cache
def openai_digests() -> frozenset[str]:
    """SHA-256 of the archives that OpenAI published, which their addresses contain."""
    urls = (get_tag_config(model, "openai").get("url") or "" for model in model_configs())
    return frozenset(part for url in urls for part in url.split("/") if len(part) == 64)


def _tag_preprocess(entry: dict[str, Any]) -> dict[str, Any]:
    """The part of a tag's entry that concerns the transform."""
    return {key: entry[key] for key in _PREPROCESS_KEYS if entry.get(key) is not None}


def missing_message(model: str, tag: str) -> str:
    """How to get a tag's weights that are not on this machine."""
    entry = get_tag_config(model, tag)
    where = entry.get("url", "their authors")
    if hub := entry.get("hf_hub"):
        where = f"https://huggingface.co/{hub.rstrip('/')} ({_HF_NAMES[0]})"
    target = weights_folder() / f"{model}--{tag}.safetensors"
    flags = ["--encoder.model", model, "--encoder.weights", tag]
    pull = shlex.join(["raffect", "models", "pull", *flags])
    by_hand = f"bring the file from {where} and save it as {target}"
    return (
        f"weights {tag} of {model} are not on this machine; with a network run `{pull}`; "
        f"without one {by_hand}, or name it with --encoder.weights FILE; "
        "to try raffect without weights run `raffect demo`"
    )


def _hub_files(hub: str) -> list[Path]:
    """Files of a Hugging Face repository in its local cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    # ``owner/repo`` or ``owner/repo/file``.
    repo, _, name = hub.rpartition("/") if hub.count("/") > 1 else (hub, "", "")
    names = ([name] if name else []) + list(_HF_NAMES)
    found = [try_to_load_from_cache(repo, file) for file in names]
    return [Path(file) for file in found if isinstance(file, str)]


@cache
def _open_clip_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise RaffectError(
            "open_clip is not installed; run `uv pip install -e .` in raffect's clone"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _tables() -> types.ModuleType:
    """open_clip's table of pretrained weights.

    It is loaded beside the package, whose own import takes torch and seconds.
    """
    package = types.ModuleType("_raffect_open_clip")
    package.__path__ = [str(_open_clip_folder())]
    sys.modules[package.__name__] = package
    # The table only asks whether safetensors.torch is installed; asking would import torch.
    hidden = "safetensors.torch" not in sys.modules
    if hidden:
        sys.modules["safetensors.torch"] = None  # ty: ignore[invalid-assignment]
    try:
        return importlib.import_module(f"{package.__name__}.pretrained")
    finally:
        if hidden:
            del sys.modules["safetensors.torch"]
