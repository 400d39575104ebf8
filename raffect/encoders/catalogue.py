"""`raffect models`: which encoders there are, and how to find, get and check their weights."""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.config import (
    EncoderConfig,
    ModelsListConfig,
    ModelsPathConfig,
    ModelsPullConfig,
    ModelsVerifyConfig,
)
from raffect.encoders.timm_models import (
    download_timm,
    find_timm_file,
    list_timm,
    require_tag,
    timm_name,
)
from raffect.encoders.weights import (
    find_tag_file,
    get_tag_config,
    is_timm,
    list_tags,
    model_configs,
    read_model_config,
    resolve,
    weights_folder,
)
from raffect.errors import RaffectError
from raffect.progress import format_bytes
from raffect.storage.paths import sha256_of
from raffect.storage.tables import table_of


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model, a tag of its weights (``-`` without one), and their file if this machine has it."""

    model: str
    tag: str
    file: Path | None

    def line(self) -> str:
        """As `raffect models list` shows it; a star marks what is on this machine."""
        mark, file = ("*", self.file) if self.file else (" ", "")
        return f"{mark} {self.model:40} {self.tag:32} {file}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """Models and their weights, by name; ``folder`` is where weights are looked for first."""

    weights: tuple[Weights, ...]
    folder: Path

    def lines(self) -> list[str]:
        """The table as lines of text."""
        legend = "* is on this machine; random:SEED works for every model"
        where = f"weights are looked for in {self.folder} first"
        others = "`raffect models list --pattern timm:dinov2` searches timm's image towers"
        return [*(each.line() for each in self.weights), "", f"{legend}; {where}", others]

    def to_pandas(self) -> Any:
        """A data frame with columns model, tag and file (None for what is not on this machine)."""
        return table_of(self.weights, Weights).to_pandas()


def list_models(config: ModelsListConfig) -> ModelList:
    """Encoders that open_clip has and the one that ships with raffect, or timm's.

    timm's 1,800 are listed for a pattern that begins with ``timm:``.
    """
    if is_timm(config.pattern):
        found = _list_timm(timm_name(config.pattern))
        kept = tuple(each for each in found if each.file or not config.present)
        return ModelList(weights=kept, folder=weights_folder())
    names = [model for model in model_configs() if config.pattern.lower() in model.lower()]
    # A line a tag; a model without tags has a line as well.
    found = [
        Weights(model=model, tag=tag, file=find_tag_file(model, tag) if tag != "-" else None)
        for model in names
        for tag in list_tags(model) or ["-"]
    ]
    kept = tuple(each for each in found if each.file or not config.present)
    return ModelList(weights=kept, folder=weights_folder())


def _list_timm(part: str) -> list[Weights]:
    """timm's towers whose names contain a text; their tags are in their names."""
    return [
        Weights(model=model, tag=model.partition(".")[2], file=find_timm_file(model))
        for model in list_timm()
        if part.lower() in model.lower()
    ]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """The file that `raffect extract` would load."""

    file: Path

    def lines(self) -> list[str]:
        """The path alone, for scripts."""
        return [str(self.file)]


def path(config: ModelsPathConfig) -> WeightsFile:
    """The file that `raffect extract` would load.

    Raises:
        RaffectError: If it is missing; the message says where to put it.
    """
    source = resolve(config.encoder)
    if source.file is None:
        raise RaffectError(f"{config.encoder.weights} are made on the spot and have no file")
    return WeightsFile(file=source.file)


@dataclass(frozen=True, kw_only=True)
class PullReport:
    """The file that was downloaded, its size in bytes, and whether it was here already."""

    model: str
    tag: str
    file: Path
    size_bytes: int
    was_here: bool

    def lines(self) -> list[str]:
        """The report as lines of text."""
        file = f"{self.file} ({format_bytes(self.size_bytes)})"
        if self.was_here:
            return [f"already here: {file}"]
        flags = ["--encoder.model", self.model, "--encoder.weights", self.tag]
        following = shlex.join(["raffect", "models", "verify", *flags])
        return [f"pulled: {file}", f"next: {following}"]


def pull(config: ModelsPullConfig) -> PullReport:
    """Download a tag's weights through open_clip, into its cache, where every command finds them.

    Raises:
        RaffectError: If the weights are not a tag, or the network is out of reach.
    """
    model, tag = config.encoder.model, config.encoder.weights
    file = _find_present(model, tag)
    was_here = file is not None
    if file is None:
        file = _download(config.encoder)
    size = file.stat().st_size
    return PullReport(model=model, tag=tag, file=file, size_bytes=size, was_here=was_here)


def _find_present(model: str, tag: str) -> Path | None:
    """The file of a tag on this machine; an unknown model is an error."""
    if not is_timm(model):
        read_model_config(model)
        return find_tag_file(model, tag)
    require_tag(model, tag)
    return find_timm_file(model)


_BY_HAND = "check the network, or bring the file by hand: `raffect models path` says where"


def _download(encoder: EncoderConfig) -> Path:
    model, tag = encoder.model, encoder.weights
    if is_timm(model):
        _require_network({"hf_hub": model})
        return _attempt(lambda: download_timm(model), model, tag)
    if tag not in list_tags(model):
        resolve(encoder)  # which has its own errors for a misspelt tag and a missing file
        tags = ", ".join(list_tags(model)) or "none"
        raise RaffectError(f"--encoder.weights {tag}: only a tag can be pulled; {model} has {tags}")
    _require_network(get_tag_config(model, tag))
    # Here, since open_clip takes torch and seconds to import.
    from open_clip.pretrained import download_pretrained

    return _attempt(lambda: Path(download_pretrained(get_tag_config(model, tag))), model, tag)


def _attempt(download: Callable[[], Path], model: str, tag: str) -> Path:
    try:
        return download()
    except RaffectError:
        raise
    except Exception as error:  # the hub's, urllib's and open_clip's errors share no type
        reason = " ".join(str(error).split())[:160]
        what = f"weights {tag} of {model} could not be downloaded ({reason})"
        raise RaffectError(f"{what}; {_BY_HAND}") from error


def _require_network(entry: dict) -> None:
    """Fail in seconds where the hub's client would try again for a minute."""
    # With a proxy or a mirror, another host is asked.
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")):
        return
    url = "" if entry.get("hf_hub") else entry.get("url", "")
    host = urllib.parse.urlsplit(url).hostname or "huggingface.co"
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        what = f"{host} is out of reach ({error.strerror or error})"
        raise RaffectError(f"{what}; {_BY_HAND}") from error


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What is known of weights that were loaded.

    Attributes:
        file: Their file; None for random weights.
        size_bytes: Size of the file; 0 without a file.
        sha256: Of the file; empty without a file.
        is_published: Whether that is the hash that its authors published; False also where they
            published none.
        num_values: Values of the image tower; all are finite.
        dim: Length of a vector.
        load_s: Seconds to load them.
        fingerprint: SHA-256 of the loaded image tower, as a bank's identity has it.
        caveat: What every result that rests on them must state; empty for pretrained weights.
    """

    file: Path | None
    size_bytes: int
    sha256: str
    is_published: bool
    num_values: int
    dim: int
    load_s: float
    fingerprint: str
    caveat: str

    def lines(self) -> list[str]:
        """The report as lines of text."""
        out = []
        if self.file is not None:
            size = format_bytes(self.size_bytes)
            out.append(f"file: {self.file} ({size}), SHA-256 {self.sha256}")
        if self.is_published:
            out.append("published SHA-256: matches")
        tower = f"{self.num_values:,} values, all finite, {self.dim}-d"
        out.append(f"image tower: {tower}, loaded in {self.load_s:.1f} s")
        out.append(f"fingerprint: {self.fingerprint}")
        if self.caveat:
            out.append(f"caveat: {self.caveat}")
        return out


def verify(config: ModelsVerifyConfig) -> WeightsReport:
    """Load weights as `raffect extract` would, and report on them.

    Raises:
        RaffectError: If they are missing, damaged, of another model, not finite, or not the file
            that was published.
    """
    # The file against its authors' hash.
    source = resolve(config.encoder)
    sha256 = sha256_of(source.file) if source.file else ""
    published = _published_sha256(source.model, source.name, source.file) if source.file else None
    if published and not sha256.startswith(published):
        what = f"{source.file}: SHA-256 begins with {sha256[:8]}"
        expected = f"its authors published {published[:8]}"
        raise RaffectError(f"{what}, {expected}; delete the file and pull it again")

    # The tensors, all of which loading checks.
    from raffect.encoders.tower import load_encoder

    start = time.perf_counter()
    encoder = load_encoder(config.encoder, "cpu")
    load_s = time.perf_counter() - start
    return WeightsReport(
        file=source.file,
        size_bytes=source.file.stat().st_size if source.file else 0,
        sha256=sha256,
        is_published=published is not None,
        num_values=sum(tensor.numel() for tensor in encoder.tower.state_dict().values()),
        dim=encoder.identity.dim,
        load_s=load_s,
        fingerprint=encoder.identity.weights_sha256,
        caveat=encoder.identity.caveat,
    )


def _published_sha256(model: str, tag: str, file: Path) -> str | None:
    """The hash, or its start, that OpenAI and open_clip put into their download addresses.

    It holds for the file of that address alone.
    """
    url = "" if is_timm(model) else get_tag_config(model, tag).get("url", "")
    if not url or url.rsplit("/", 1)[-1] != file.name:
        return None
    # OpenAI has a folder of the whole hash, open_clip the start of it in the file's name.
    match = re.search(r"/([0-9a-f]{64})/", url) or re.search(r"-([0-9a-f]{8})\.pt$", url)
    return match[1] if match else None
