"""Which entries of scale vectors matter, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scalevec import _scalevec
from scalevec.errors import make_error
from scalevec.scales import Scales

# Address, channel, effective value.
Trial = tuple[str, int, float]
# What was tried, and what each did.
Sweep = tuple[Sequence[Trial], Sequence[_scalevec.Change]]


def trials_of(scales: _scalevec.ScaleMap, trials: Sequence[Trial]) -> list[_scalevec.Trial]:
    return [_scalevec.Trial(scales.index_of(address), channel, value) for address, channel, value in trials]


class Entry(NamedTuple):
    """One entry of one vector, with the figure that it was ranked by."""

    address: str
    channel: int
    score: float
    effective: float

    @property
    def selector(self) -> str:
        """Names this entry in an edit: "layers.3.mlp.input_norm@17"."""
        return f"{self.address}@{self.channel}"


class Saliency:
    """First-order view of every entry at once. Figures are mappings from addresses to (width,) float64 arrays.

    Attributes:
        effective: g.
        gradient: d loss / dg, nats per prediction and unit of g.
        ablation: -g d loss / dg: first-order loss change of setting each entry to zero, nats per prediction.
        loss: Nats per prediction. predictions: How many.
    """

    def __init__(self, scales: Scales, made: _scalevec.Saliency) -> None:
        self._made = made
        addresses = [scale.address for scale in scales]
        self.effective, self.gradient, self.ablation = (
            {address: tensor.numpy() for address, tensor in zip(addresses, tensors, strict=True)}
            for tensors in (made.effective, made.gradient, made.ablation)
        )
        self.loss: float = made.loss
        self.predictions: int = made.predictions

    def top(self, most: int = 10, by: str = "ablation", *, largest: str = "magnitude") -> list[Entry]:
        """The leading entries.

        Args:
            by: "ablation" or "gradient".
            largest: "magnitude", "positive" (predicted to hurt when set to zero) or "negative" (to help).
        """
        if by not in ("ablation", "gradient") or largest not in ("magnitude", "positive", "negative"):
            raise make_error("E_VALUE", f"top: by={by!r}, largest={largest!r}; see its documentation", key="by")
        figures = getattr(self, by)
        scores = np.concatenate(list(figures.values()))
        order = {"magnitude": np.abs(scores), "positive": scores, "negative": -scores}[largest]
        ends = np.cumsum([len(values) for values in figures.values()])
        addresses = list(figures)
        entries = []
        for index in np.argsort(-order, kind="stable")[:most]:
            row = int(np.searchsorted(ends, index, side="right"))
            channel = int(index - (ends[row - 1] if row else 0))
            address = addresses[row]
            entries.append(Entry(address, channel, float(scores[index]), float(self.effective[address][channel])))
        return entries

    def __repr__(self) -> str:
        lines = [f"{e.selector:40} {e.score:+.4g}  (effective {e.effective:.4g})" for e in self.top()]
        head = f"Saliency over {self.predictions:,} predictions, loss {self.loss:.4f} nats; first-order leaders:"
        return "\n".join([head, *lines])
