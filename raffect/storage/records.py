"""Records: frozen dataclasses that are stored as JSON, and the one reader of such files.

A record declares its fields with their types, and ranges as ``Annotated[int, Ge(0)]``. If a file
holds anything else, the error is one line that names the file, the field, the value found and how
to fix it. pydantic does the checking; it is imported when the first file is read.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from annotated_types import Ge

from raffect.errors import RaffectError

Count = Annotated[int, Ge(0)]
"""A number of things."""
_SHOWN = 60
"""Most characters of a value that an error shows."""


class OtherFormat(RaffectError):
    """A file of a format that this program does not read; nothing need be wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base class of all records.

    Unknown fields are refused, and so are values of another type than declared: a number is not
    read from a text.
    """

    # Without an annotation, or tyro would take it for a setting.
    __pydantic_config__ = MappingProxyType({"extra": "forbid", "strict": True})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_json` makes an equal record."""
        return dataclasses.asdict(self)

    def to_bytes(self) -> bytes:
        """The file that holds this record."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    @classmethod
    def from_json(
        cls, content: bytes | str | dict[str, Any], where: Path | str, remedy: str
    ) -> Self:
        """The record that JSON describes.

        Args:
            content: Bytes of a file, or the object parsed from it.
            where: The file, for errors.
            remedy: What a user can do about a damaged file, such as ``train again``.

        Raises:
            RaffectError: If it is not JSON, is nested too deeply, lacks a field or has an unknown
                one, or if a value is of another type or out of range. The message names the first
                fault. For a file of another ``format`` it is an `OtherFormat`, which names the
                format that this program reads.
        """
        from pydantic import ValidationError

        try:
            text = content if isinstance(content, bytes | str) else json.dumps(content)
            return _adapter(cls).validate_json(text)
        except RecursionError as error:
            raise RaffectError(f"{where}: damaged, nested too deeply; {remedy}") from error
        except ValidationError as error:
            # The first fault; a file of another format probably has more of them.
            fault = error.errors(include_url=False)[0]
            if fault["type"] == "literal_error" and fault["loc"] == ("format",):
                found, known = _shorten(fault["input"]), fault["ctx"]["expected"]
                line = f"format {found}, this program reads {known}; use the raffect that wrote it"
                raise OtherFormat(f"{where}: {line}, or {remedy}") from error
            raise RaffectError(f"{where}: damaged, {_describe(fault)}; {remedy}") from error
        except RaffectError as error:  # a record's own check of a value
            raise RaffectError(f"{where}: damaged, {error}; {remedy}") from error


def parse_object(content: bytes | str, where: Path | str, remedy: str) -> dict[str, Any]:
    """A JSON object whose fields other code knows, such as a record of an older format.

    Raises:
        RaffectError: If it is not JSON, or not an object.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = f"damaged, not JSON ({str(error)[:_SHOWN]})"
        raise RaffectError(f"{where}: {what}; {remedy}") from error
    if not isinstance(found, dict):
        raise RaffectError(f"{where}: damaged, expected a JSON object; {remedy}")
    return found


@cache
def _adapter(kind: type[Record]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _describe(fault: Any) -> str:
    """A fault of pydantic in one line.

    Such as ``scores.last.epoch -1: input should be greater than or equal to 0``.
    """
    if fault["type"] == "value_error":  # of a record's own __post_init__
        return str(fault["ctx"]["error"])
    name = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    if fault["type"] in ("missing", "json_invalid", "unexpected_keyword_argument"):
        return f"{name}: {message}" if name else message
    return f"{name} {_shorten(fault['input'])}: {message}"


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 4] + " ..."
