"""`raffect models`: which encoders there are, where their weights lie, and getting and checking them."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import urllib.parse
from pathlib import Path

from raffect.config import ModelsListConfig, ModelsPathConfig, ModelsPullConfig, ModelsVerifyConfig
from raffect.errors import RaffectError
from raffect.model.weights import find_tag_file, get_tag_config, list_tags, model_configs, read_model_config, resolve, weights_folder
from raffect.stages.progress import format_bytes


def list_models(config: ModelsListConfig) -> list[str]:
    """One line a model and tag, present ones marked."""
    out = []
    for model in model_configs():
        if config.pattern.lower() in model.lower():
            for tag in list_tags(model) or ["-"]:
                file = find_tag_file(model, tag) if tag != "-" else None
                if file or not config.present:
                    out.append(f"{'*' if file else ' '} {model:40} {tag:32} {file or ''}".rstrip())
    return [*out, "", f"* is on this machine; random:SEED works for every model; weights are looked for in {weights_folder()} first"]


def path(config: ModelsPathConfig) -> list[str]:
    """The file that `raffect extract` would load.

    Raises:
        RaffectError: If there is none; says where to put it.
    """
    source = resolve(config.encoder)
    if source.file is None:
        raise RaffectError(f"{config.encoder.weights} are made on the spot and have no file")
    return [str(source.file)]


def pull(config: ModelsPullConfig) -> list[str]:
    """Download a tag's weights through open_clip; they stay in its cache, where every command finds them.

    Raises:
        RaffectError: If the weights are no tag, or the network is out of reach.
    """
    model, tag = config.encoder.model, config.encoder.weights
    read_model_config(model)
    if file := find_tag_file(model, tag):
        return [f"already here: {file} ({format_bytes(file.stat().st_size)})"]
    if tag not in list_tags(model):
        resolve(config.encoder)
        raise RaffectError(f"--encoder.weights {tag}: only a tag can be pulled; {model} has {', '.join(list_tags(model)) or 'none'}")
    _require_network(get_tag_config(model, tag))
    from open_clip.pretrained import download_pretrained

    try:
        file = Path(download_pretrained(get_tag_config(model, tag)))
    except Exception as error:  # the hub's, urllib's and open_clip's errors share no type; all mean that nothing came
        raise RaffectError(
            f"weights {tag} of {model} could not be downloaded ({' '.join(str(error).split())[:160]}); check the network, or bring the file by hand: `raffect models path` says where"
        ) from error
    return [f"pulled: {file} ({format_bytes(file.stat().st_size)})", f"next: raffect models verify --encoder.model {model} --encoder.weights {tag}"]


def _require_network(entry: dict) -> None:
    """Fail in seconds where the hub's client would try again for a minute."""
    host = "huggingface.co" if entry.get("hf_hub") else urllib.parse.urlsplit(entry.get("url", "")).hostname or "huggingface.co"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")):
        return
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        raise RaffectError(f"{host} is out of reach ({error.strerror or error}); check the network, or bring the file by hand: `raffect models path` says where") from error


def verify(config: ModelsVerifyConfig) -> list[str]:
    """Load weights as `raffect extract` would and say what they are.

    Raises:
        RaffectError: If they are missing, damaged, of another model, not finite, or not the file their authors published.
    """
    source = resolve(config.encoder)
    out = []
    if source.file is not None:
        sha256 = _sha256(source.file)
        out.append(f"file: {source.file} ({format_bytes(source.file.stat().st_size)}), SHA-256 {sha256}")
        if published := _published_sha256(source.model, source.name, source.file):
            if not sha256.startswith(published):
                raise RaffectError(f"{source.file}: SHA-256 begins with {sha256[:8]}, its authors published {published[:8]}; delete the file and pull it again")
            out.append("published SHA-256: matches")
    from raffect.model.encoder import load_encoder

    start = time.perf_counter()
    encoder = load_encoder(config.encoder, "cpu")
    identity = encoder.identity
    parameters = sum(tensor.numel() for tensor in encoder.tower.state_dict().values())
    out.append(f"image tower: {parameters:,} values, all finite, {identity.dim}-d, loaded in {time.perf_counter() - start:.1f} s")
    out.append(f"fingerprint: {identity.weights_sha256}")
    return out + ([f"stamp: {identity.stamp}"] if identity.stamp else [])


def _published_sha256(model: str, tag: str, file: Path) -> str | None:
    """The (start of the) hash that OpenAI and open_clip put into their download addresses; it holds for that very file."""
    url = get_tag_config(model, tag).get("url", "")
    if not url or url.rsplit("/", 1)[-1] != file.name:
        return None
    match = re.search(r"/([0-9a-f]{64})/", url) or re.search(r"-([0-9a-f]{8})\.pt$", url)
    return match[1] if match else None


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
