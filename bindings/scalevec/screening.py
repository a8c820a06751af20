"""Which entries of scale vectors matter: all to first order, some exactly. Its functions are methods of Model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scalevec import _scalevec
from scalevec.errors import make_error
from scalevec.scales import Scales
from scalevec.text import Text, documents_of

if TYPE_CHECKING:
    from scalevec.model import Model, Progress

# Address, channel, effective value.
Trial = tuple[str, int, float]
# What was tried, and what each did.
Sweep = tuple[Sequence[Trial], Sequence[_scalevec.Change]]


def trials_of(scales: _scalevec.ScaleMap, trials: Sequence[Trial]) -> list[_scalevec.Trial]:
    return [_scalevec.Trial(scales.index_of(address), channel, value) for address, channel, value in trials]


_LARGEST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "magnitude": np.abs,
    "positive": np.positive,
    "negative": np.negative,
}


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


def leaders(
    figures: dict[str, np.ndarray],
    effective: dict[str, np.ndarray],
    most: int,
    order: Callable[[np.ndarray], np.ndarray] = np.positive,
) -> list[Entry]:
    """The entries whose figure is largest under `order`, by address and channel where figures are equal; NaN last."""
    scores = np.concatenate(list(figures.values()))
    places = [(address, channel) for address, values in figures.items() for channel in range(len(values))]
    first = np.argsort(-order(scores), kind="stable")[:most]
    chosen = [(*places[i], float(scores[i])) for i in first]
    return [Entry(address, channel, score, float(effective[address][channel])) for address, channel, score in chosen]


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
        if by not in ("ablation", "gradient") or largest not in _LARGEST:
            raise make_error("E_VALUE", f"top: by={by!r}, largest={largest!r}; see its documentation", key="by")
        return leaders(getattr(self, by), self.effective, most, _LARGEST[largest])

    def __repr__(self) -> str:
        lines = [f"{e.selector:40} {e.score:+.4g}  (effective {e.effective:.4g})" for e in self.top()]
        head = f"Saliency over {self.predictions:,} predictions, loss {self.loss:.4f} nats; first-order leaders:"
        return "\n".join([head, *lines])


def saliency(
    model: Model, text: Text, *, context: int = 512, tokens: int | None = None, progress: Progress | None = None
) -> Saliency:
    """First-order view of every entry: one forward and backward in which only scale vectors require gradients.

    It finds candidates; of large changes it says neither size nor sign. See `sweep` for exact figures.
    """
    documents, bos = documents_of(model, text, tokens)
    made = _scalevec.saliency(model.transformer, documents, context=context, bos=bos, progress=progress)
    return Saliency(model.scales, made)


def outliers(model: Model) -> dict[str, np.ndarray]:
    """By address: how many of its vector's standard deviations each entry lies from the mean. (width,), float64."""
    scores = _scalevec.outlier_scores(model._map)
    return {scale.address: score.numpy() for scale, score in zip(model.scales, scores, strict=True)}


def sweep(
    model: Model,
    text: Text,
    trials: Sequence[Trial],
    *,
    context: int = 512,
    tokens: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[_scalevec.Change]:
    """Exact effects of many single-entry edits of the file's vectors, each alone: loss change, KL, flips.

    Args:
        trials: (address, channel, effective value). The model is never changed.

    Returns:
        One Change for each, in order; intervals from 20 chunks of 64 predictions on.
    """
    documents, bos = documents_of(model, text, tokens)
    return _scalevec.sweep(
        model.transformer, documents, trials_of(model._map, trials), context=context, bos=bos,
        seed=seed, resamples=resamples, batch=batch, progress=progress,
    )  # fmt: skip
