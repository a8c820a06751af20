"""The exceptions of scalevec: each is a standard one and an `Error` with a code and fields."""

from __future__ import annotations

from typing import Any

_FIELDS = ("file", "tensor", "key", "offset", "index", "expected", "found")


class Error(Exception):
    """What every exception of this library can be caught as.

    Attributes:
        code: ``"E_ADDR"``, ``"E_TRUNC"``, ...: stable, for programs.
        fields: What the error is about: any of ``file``, ``tensor`` (a native name or an address), ``key``,
            ``offset`` (byte in the file), ``index``, ``expected``, ``found``. Each is an attribute too, None
            where it does not apply.
    """

    code: str
    fields: dict[str, Any]
    file: str | None
    tensor: str | None
    key: str | None
    offset: int | None
    index: int | None
    expected: str | None
    found: str | None

    def __init__(self, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.fields = {name: value for name, value in fields.items() if value not in (None, "")}
        for name in _FIELDS:
            setattr(self, name, self.fields.get(name))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.code, str(self), self.fields))


def _rebuild(kind: type[Error], code: str, message: str, fields: dict[str, Any]) -> Error:
    return kind(code, message, **fields)


class AddressError(Error, IndexError):
    """No such address, channel or selection (E_ADDR)."""


class FileError(Error, OSError):
    """The operating system refused, or a path leads elsewhere (E_IO, E_PATH)."""

    # OSError keeps its text in errno and strerror; one argument must stay one message.
    def __str__(self) -> str:
        return str(self.args[0])


class DeviceError(Error, RuntimeError):
    """A device that is absent (E_DEVICE)."""


class InvalidError(Error, ValueError):
    """A file, argument or state that does not fit (every other code)."""


def make_error(code: str, message: str, **fields: Any) -> Error:
    """The exception for a code: the same rule as in C++ (core/error.h)."""
    kind: type[Error]
    if code == "E_ADDR":
        kind = AddressError
    elif code in ("E_IO", "E_PATH"):
        kind = FileError
    elif code == "E_DEVICE":
        kind = DeviceError
    else:
        kind = InvalidError
    if not message.startswith(code):
        message = f"{code}: {message}"
    return kind(code, message, **fields)
