"""The identity of a joined bank: which encoders made its parts, and how they were joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from raffect.bank.records import MOST_DIM, How, Identity, Joined
from raffect.errors import require

_BETWEEN = "; "
_DONE = {"concatenate": "concatenated", "average": "averaged"}


def join_identities(parts: Sequence[Identity], how: How) -> Identity:
    """The identity of the bank that joins some.

    Args:
        parts: Their identities, in order; one may be joined itself.
        how: ``concatenate``: vectors of a frame stand one behind another, as they are.
            ``average``: their mean, as they are, in float32.

    Raises:
        RaffectError: If there are fewer than two, two are of one encoder and view, one is also
            part of another, lengths to average differ, or the vector would be too long.
    """
    require(len(parts) >= 2, "expected two banks or more, to join them")
    for number, part in enumerate(parts):
        others = [k for k, other in enumerate(parts[:number]) if not other.differences(part)]
        require(
            not others,
            f"banks {others[0] + 1 if others else 0} and {number + 1} are both of "
            f"{name_of(part)}, with the same weights and preprocessing; name each encoder and view "
            "once (banks of imported vectors are told apart by --name)",
        )
    for number, part in enumerate(parts, 1):
        own = _parts_of(part, how)
        inside = [one for one in own for other in parts if not one.differences(other)]
        require(
            not inside,
            f"bank {number} has {name_of(inside[0]) if inside else ''} in it, which is also named "
            "by itself; name each encoder and view once",
        )
    dims = [part.dim for part in parts]
    lengths = ", ".join(f"{name_of(part)} has {part.dim:,}" for part in parts)
    require(
        how == "concatenate" or len(set(dims)) == 1,
        f"only vectors of one length can be averaged, and {lengths} numbers; concatenate them",
    )
    dim = sum(dims) if how == "concatenate" else dims[0]
    require(dim <= MOST_DIM, f"{dim:,} numbers a frame, expected at most {MOST_DIM:,}; join fewer")
    caveats = [caveat for part in parts for caveat in part.caveat.split(_BETWEEN) if caveat]
    key = json.dumps({"how": how, "parts": [part.compared for part in parts]}, sort_keys=True)
    return Identity(
        model=_name(parts, how),
        weights_sha256=hashlib.sha256(key.encode()).hexdigest(),
        weights=_DONE[how],
        preprocess={},
        precision="float32",
        dim=dim,
        caveat=_BETWEEN.join(dict.fromkeys(caveats)),
        joined=Joined(how=how, parts=tuple(parts)),
    )


def name_of(identity: Identity) -> str:
    """A short name of an encoder, such as ``ViT-L-14 flip``: its model, and its view if any."""
    return " ".join([identity.model, *filter(None, [str(identity.preprocess.get("view", ""))])])


def _name(parts: Sequence[Identity], how: How) -> str:
    names = [name_of(part) for part in parts]
    return " + ".join(names) if how == "concatenate" else f"mean({', '.join(names)})"


def _parts_of(identity: Identity, how: How) -> list[Identity]:
    """Parts of a bank that is joined in a way, and theirs; empty for any other bank."""
    if identity.joined is None or identity.joined.how != how:
        return []
    return [one for part in identity.joined.parts for one in (part, *_parts_of(part, how))]


def describe_join(how: How) -> str:
    """``concatenated`` or ``averaged``."""
    return _DONE[how]


def suggest_join(wanted: Identity, given: Identity) -> str:
    """How banks are to be named so that the one that joins them is as wanted.

    Args:
        wanted: Identity of the joined bank that is needed.
        given: That of another one.

    Returns:
        Empty unless both join the same encoders and views, in another order or way.
    """
    if wanted.joined is None or given.joined is None:
        return ""
    ours, theirs = (
        [(part.weights_sha256, name_of(part)) for part in joined.parts]
        for joined in (wanted.joined, given.joined)
    )
    if sorted(ours) != sorted(theirs):
        return ""
    order = " ".join(f"<{name}>" for _, name in ours)
    how = " --how average" if wanted.joined.how == "average" else ""
    return f"name the same banks as the head's, in its order: --bank {order}{how}"


def text_space(identity: Identity) -> Identity | None:
    """The encoder whose texts a bank's vectors can be compared with.

    A mean of views of one encoder lies in that encoder's space, where its text tower is right; a
    concatenation, or a mean over several encoders, is in no space that texts are in.

    Returns:
        None if there is no such encoder.
    """
    if identity.joined is None:
        return identity
    spaces = [text_space(part) for part in identity.joined.parts]
    found = [space for space in spaces if space is not None]
    if identity.joined.how != "average" or len(found) < len(spaces):
        return None
    alike = {(space.model, space.weights_sha256) for space in found}
    return found[0] if len(alike) == 1 else None
