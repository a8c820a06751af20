"""The table of a model's scale vectors."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec import _scalevec
from scalevec.errors import make_error

if TYPE_CHECKING:
    import pandas

COLUMNS = ("address", "native", "role", "kind", "offset", "eps", "width", "consumers", "mean", "min", "max")


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read_only(values: torch.Tensor) -> np.ndarray:
    """Writing to a copy would change no model, and nobody would be told."""
    array: np.ndarray = values.numpy()
    array.flags.writeable = False
    return array


class Scale:
    """One scale vector of a model, live: it shows what the model holds now, edits included."""

    def __init__(self, scales: _scalevec.ScaleMap, index: int) -> None:
        self._map = scales
        self.index = index
        self.site: _scalevec.Site = scales.sites[index]

    @property
    def _vector(self) -> _scalevec.ScaleVector:
        return self._map[self.index]

    @property
    def address(self) -> str:
        """Canonical name: ``"layers.7.attn.input_norm"``."""
        return self.site.address

    @property
    def native(self) -> str:
        """Name in the file."""
        return self.site.native

    @property
    def role(self) -> str:
        """input, output, residual, final, embedding, latent or conditional."""
        return self.site.role

    @property
    def kind(self) -> str:
        """What divides the activation first: rms, layer or none."""
        return self.site.kind

    @property
    def eps(self) -> float:
        return self.site.eps

    @property
    def offset(self) -> float:
        """What the model adds to the stored vector: effective = offset + stored."""
        return self.site.offset

    @property
    def width(self) -> int:
        """Entries of the vector."""
        return self.site.width

    @property
    def group(self) -> int:
        """Entries of the activation that share one rms."""
        return self.site.group

    @property
    def layer(self) -> int | None:
        return self.site.layer

    @property
    def consumers(self) -> list[_scalevec.Link]:
        """Linear maps that read the norm's output."""
        return self.site.consumers

    @property
    def producers(self) -> list[_scalevec.Link]:
        """Linear maps whose output the norm normalizes."""
        return self.site.producers

    @property
    def dtype(self) -> str:
        """Stored dtype, as files write it: F32, BF16, F16 or F64."""
        return self._vector.dtype

    @property
    def effective(self) -> np.ndarray:
        """(width,), float64: the factors that activations meet now. A copy, not to be written: see `Model.edit`."""
        return _read_only(self._vector.effective())

    @property
    def base(self) -> np.ndarray:
        """(width,), float64: effective values as the file holds them. A copy, not to be written."""
        return _read_only(self._map.base(self.index).effective())

    @property
    def stored(self) -> torch.Tensor:
        """(width,), as the model holds it: shared with the model. Do not write to it: edits go through `edit()`."""
        return self._vector.stored

    @property
    def bias(self) -> torch.Tensor | None:
        return self._vector.bias

    @property
    def digest(self) -> str:
        """Identity of what is stored now: ``"sha256:..."``."""
        return self._vector.digest()

    @property
    def mean(self) -> float:
        return float(self.effective.mean())

    @property
    def min(self) -> float:
        return float(self.effective.min())

    @property
    def max(self) -> float:
        return float(self.effective.max())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; mean, min and max are of effective values, None where they are not finite."""
        effective = self.effective
        return {
            "address": self.address,
            "native": self.native,
            "role": self.role,
            "kind": self.kind,
            "offset": self.offset,
            "eps": self.eps,
            "width": self.width,
            "group": self.group,
            "dtype": self.dtype,
            "consumers": [link.branch for link in self.consumers],
            "consumer_weights": [link.native for link in self.consumers],
            "producers": [link.branch for link in self.producers],
            "mean": _json_number(float(effective.mean())),
            "min": _json_number(float(effective.min())),
            "max": _json_number(float(effective.max())),
        }

    def __repr__(self) -> str:
        return (
            f"Scale({self.address!r}, native={self.native!r}, role={self.role}, width={self.width}, "
            f"offset={self.offset:g}, mean={self.mean:.4g}, min={self.min:.4g}, max={self.max:.4g})"
        )


def cells(scale: Scale) -> list[str]:
    """A row of a table under `COLUMNS`."""
    row = scale.to_dict()
    row["consumers"] = ",".join(row["consumers"]) or "-"
    numbers = {
        name: "-" if row[name] is None else f"{row[name]:.4g}" for name in ("offset", "eps", "mean", "min", "max")
    }
    return [f"{numbers.get(name, row[name])}" for name in COLUMNS]


class Scales(Sequence[Scale]):
    """Scale vectors in forward order; a table in a notebook.

    Index by number, by address or native name, or by a slice. `select` takes a selector; `where` a predicate.
    """

    def __init__(self, scales: _scalevec.ScaleMap, indices: Sequence[int] | None = None) -> None:
        self._map = scales
        self._rows = [Scale(scales, i) for i in (range(len(scales)) if indices is None else indices)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Scale]:
        return iter(self._rows)

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, str):
            index = self._map.index_of(key)
            for row in self._rows:
                if row.index == index:
                    return row
            raise make_error("E_ADDR", f"scales: '{key}' is not among these {len(self)} vectors", tensor=key)
        if isinstance(key, slice):
            return Scales(self._map, [row.index for row in self._rows[key]])
        if not -len(self) <= key < len(self):
            raise make_error("E_ADDR", f"scales: there are {len(self)} vectors, but no number {key}", index=key)
        return self._rows[key]

    def __contains__(self, key: object) -> bool:
        """Whether an address, a native name or a vector of this table is here."""
        if isinstance(key, str):
            return any(key in (row.address, row.native) for row in self._rows)
        return key in self._rows

    def select(self, selector: str) -> ScaleSelection:
        """What a selector names, in forward order: (scale, channels) pairs; channels is None for a whole vector.

        Raises:
            AddressError: The selector matches nothing here; the message names the nearest addresses.
            TypeError: The selector is no text.
        """
        if not isinstance(selector, str):
            way = "where(...) takes a predicate" if callable(selector) else "example: 'layers.{0..5}.*.input_norm'"
            raise TypeError(f"scales.select takes a selector as text, not {type(selector).__name__}; {way}")
        chosen = [(row.site, row) for row in self._rows]
        selections = _scalevec.select(selector, [site for site, _ in chosen])
        return ScaleSelection(
            (chosen[selection.site][1], None if selection.whole else list(selection.channels))
            for selection in selections
        )

    def where(self, predicate: Callable[[Scale], bool]) -> Scales:
        """The vectors for which `predicate(scale)` is true; may be empty."""
        return Scales(self._map, [row.index for row in self._rows if predicate(row)])

    @property
    def selector(self) -> str:
        """A selector that names exactly these vectors.

        Raises:
            AddressError: There are none.
        """
        if not self._rows:
            raise make_error("E_ADDR", "scales: an empty table has no selector; the predicate matched no vector")
        return ";".join(row.address for row in self._rows)

    @property
    def entries(self) -> int:
        """Entries of all vectors together."""
        return sum(row.width for row in self._rows)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per vector."""
        import pandas

        rows = [row.to_dict() for row in self._rows]
        for row in rows:
            row["consumers"] = ",".join(row["consumers"])
        return pandas.DataFrame(rows, columns=list(COLUMNS))

    def __repr__(self) -> str:
        return _text_table(
            [cells(row) for row in self._rows], f"{plural(len(self), 'scale vector')}, {self.entries:,} entries"
        )

    def _repr_html_(self) -> str:
        return _html_table(
            [cells(row) for row in self._rows], f"{plural(len(self), 'scale vector')}, {self.entries:,} entries"
        )


class ScaleSelection(list[tuple[Scale, list[int] | None]]):
    """What a selector names: (scale, channels) pairs; a table in a notebook."""

    @property
    def selector(self) -> str:
        """A selector that names exactly this."""
        return ";".join(
            scale.address if channels is None else f"{scale.address}@{_scalevec.channels_text(channels)}"
            for scale, channels in self
        )

    def _lines(self) -> tuple[list[list[str]], str]:
        entries = sum(scale.width if channels is None else len(channels) for scale, channels in self)
        return [cells(scale) for scale, _ in self], f"{plural(len(self), 'scale vector')}, {entries:,} entries selected"

    def __repr__(self) -> str:
        return _text_table(*self._lines())

    def _repr_html_(self) -> str:
        return _html_table(*self._lines())


def _text_table(rows: list[list[str]], caption: str) -> str:
    widths = [max(len(text) for text in column) for column in zip(COLUMNS, *rows, strict=True)]
    lines = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in (COLUMNS, *rows)]
    return "\n".join([*lines, caption])


def _html_table(rows: list[list[str]], caption: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(t)}</td>" for t in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


Target = str | Scale | Scales | ScaleSelection | Sequence[str | Scale]


def selector_of(target: Target) -> str:
    """The selector of a target: text as it is; vectors, tables and selections by their addresses.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(target, str):
        return target
    if isinstance(target, Scale):
        return target.address
    if isinstance(target, Scales | ScaleSelection):
        return target.selector
    wrong: Any = target
    if isinstance(target, Sequence) and len(target) > 0:
        parts = [part for part in target if isinstance(part, str | Scale)]
        if len(parts) == len(target):
            return ";".join(selector_of(part) for part in parts)
        wrong = next(part for part in target if not isinstance(part, str | Scale))
    raise TypeError(
        f"a target is a selector as text, or vectors of model.scales, not {type(wrong).__name__}; "
        "for a predicate: model.scales.where(...)"
    )
