"""The tracer in anybody's PyTorch loop."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch

from scalevec import _scalevec
from scalevec.curvature import Curvature
from scalevec.errors import make_error
from scalevec.module import Module


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A norm of a foreign model: its module, and the linear maps that read it, by branch."""

    address: str
    role: str
    native: str
    module: Any
    readers: list[tuple[str, torch.nn.Linear]]

    def vector(self) -> _scalevec.TracedVector:
        return _scalevec.TracedVector(
            address=self.address, native=f"{self.native}.weight", role=self.role, offset=0.0,
            eps=self.module.variance_epsilon, stored=self.module.weight.detach(),
            consumers=[(branch, linear.weight.detach()) for branch, linear in self.readers],
        )  # fmt: skip

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.module.variance_epsilon)


def _llama_norms(model: Any) -> list[_Norm]:
    body = model.model if hasattr(model, "lm_head") else model
    prefix = "model." if body is not model else ""
    found = []
    for i, layer in enumerate(body.layers):
        attn, mlp, at = layer.self_attn, layer.mlp, f"{prefix}layers.{i}."
        of_attn = [("q", attn.q_proj), ("k", attn.k_proj), ("v", attn.v_proj)]
        of_mlp = [("gate", mlp.gate_proj), ("up", mlp.up_proj)]
        found += [
            _Norm(f"layers.{i}.attn.input_norm", "input", f"{at}input_layernorm", layer.input_layernorm, of_attn),
            _Norm(
                f"layers.{i}.mlp.input_norm", "input", f"{at}post_attention_layernorm", layer.post_attention_layernorm,
                of_mlp,
            ),
        ]  # fmt: skip
    # The gradient of a tied head is the embedding's as well: no reader to account for.
    own_head = hasattr(model, "lm_head") and model.lm_head.weight is not body.embed_tokens.weight
    found.append(
        _Norm("final_norm", "final", f"{prefix}norm", body.norm, [("head", model.lm_head)] if own_head else [])
    )
    return found


def _norms_of(model: torch.nn.Module) -> list[_Norm]:
    kind = type(model).__name__
    if kind in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
        raise TypeError(
            f"sv.trace: {kind} wraps a model; give the model itself, as it was before torch.compile, DataParallel or "
            "DistributedDataParallel, and train through the wrapper: both have the same parameters (inputs=True before the "
            "compiled one's first pass)"
        )
    if re.fullmatch(r"Llama(ForCausalLM|Model)", kind):
        return _llama_norms(model)
    raise TypeError(
        f"sv.trace reads scalevec.Module and transformers' LlamaForCausalLM and LlamaModel, not {kind}: train it with "
        "`scalevec train`, or "
        "give the vectors yourself with vectors=[scalevec._scalevec.TracedVector(...)]"
    )


def _is_a(optimizer: torch.optim.Optimizer, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(optimizer).__mro__)


def _rule_of(optimizer: torch.optim.Optimizer) -> str:
    for name, rule in (("AdamW", "adamw"), ("Adam", "adamw"), ("Muon", "muon"), ("SGD", "sgd")):
        if _is_a(optimizer, name):
            return rule
    raise TypeError(
        f"sv.trace knows torch.optim's SGD, Adam, AdamW and Muon, not {type(optimizer).__name__}: effective learning "
        "rates would be guessed"
    )


def _stretch(group: dict[str, Any], tensor: torch.Tensor) -> float:
    rows, columns = tensor.shape[-2:]
    if group.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a trace stands at a path, finished or growing."""
    return any(pathlib.Path(f"{os.fspath(path)}{end}").exists() for end in ("", ".live"))


class Tracing:
    """Rows of metrics of every scale vector while a PyTorch loop trains a model: see `trace`."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        path: str | os.PathLike[str],
        *,
        every: int,
        resume: dict[str, Any] | None,
        first: int,
        vectors: list[_scalevec.TracedVector] | None,
        inputs: bool,
        curvature: Callable[[], torch.Tensor] | None,
        curvature_every: int,
    ) -> None:
        self.path = pathlib.Path(path)
        self._model = model
        self._named = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
        self._parameters = {p.data_ptr(): p for p in model.parameters()}
        self._where: dict[int, tuple[torch.optim.Optimizer, dict[str, Any], str]] = {}
        for optimizer in optimizers:
            rule = _rule_of(optimizer)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    self._where[p.data_ptr()] = (optimizer, group, rule)
        norms: list[_Norm] = []
        shown = False
        if vectors is None and isinstance(model, Module):
            shown = True
            vectors = model.spec.traced_vectors({n: p.detach() for n, p in model.named_parameters()})
        elif vectors is None:
            norms = _norms_of(model)
            vectors = [norm.vector() for norm in norms]
        if self._parameters.keys().isdisjoint(self._where):
            raise ValueError(
                "sv.trace: the optimizer moves no parameter of this model; make it of those of the model as it is now"
            )
        if inputs and not (norms or shown):
            raise ValueError(
                "sv.trace: inputs=True needs norms to look at: scalevec.Module and transformers' Llama have them, "
                "vectors=[...] have not"
            )
        if curvature is not None and (curvature_every < every or curvature_every % every):
            raise ValueError(f"sv.trace: curvature_every is {curvature_every}; expected a multiple of every, {every}")
        if resume and not is_there(self.path):
            raise make_error(
                "E_PATH", "trace: there is no trace to go on with; leave resume out to begin one, with "
                f"first={resume['steps']}", file=str(self.path),
            )  # fmt: skip
        self._curvature = Curvature(model, self._parameters, vectors, curvature) if curvature is not None else None
        self._curvature_every = curvature_every
        full = all(p.dtype in (torch.float32, torch.float64) for p in self._parameters.values())
        self._tracer = _scalevec.Tracer(
            self.path, vectors, command=" ".join(sys.argv), every=every, gauge_tolerance=1e-5 if full else 0.0,
            inputs=inputs, curvature=curvature is not None, after=resume["steps"] if resume else None,
        )  # fmt: skip
        self.steps = resume["steps"] if resume else first
        if resume:
            self._tracer.restore(resume["tensors"])
        self._moved: set[int] = set()  # optimizers that have made the step at hand
        self._begun = False
        self._optimizers = optimizers
        self._handles: list[Any] = []
        self._seen: int | None = None  # the last step of which a norm of somebody else's showed its input
        if inputs and norms:
            self._seen = self.steps
            self._handles += [norm.module.register_forward_hook(self._seeing(norm)) for norm in norms]
        self._shown: tuple[_scalevec.Transformer, _scalevec.Watch] | None = None
        if shown:
            self._handles.append(model.register_forward_pre_hook(self._showing(inputs)))
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))

    def _facts(self, tensor: torch.Tensor) -> dict[str, Any]:
        parameter = self._parameters[tensor.data_ptr()]
        if tensor.data_ptr() not in self._where:  # frozen
            return {"rule": "other"}
        optimizer, group, rule = self._where[tensor.data_ptr()]
        state = optimizer.state.get(parameter, {})
        descent = parameter.grad if parameter.grad is None or not group.get("maximize") else -parameter.grad
        facts: dict[str, Any] = {
            "rule": rule,
            "rate": float(group["lr"]),
            "weight_decay": float(group["weight_decay"]),
            "gradient": descent,
            "steps": float(state.get("step", 0)),
        }
        if rule == "adamw":
            beta1, beta2 = group["betas"]
            facts |= {"momentum": float(beta1), "beta2": float(beta2), "eps": float(group["eps"])}
            second = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
            facts |= {"exp_avg": state.get("exp_avg"), "exp_avg_sq": state.get(second)}
            if group["weight_decay"] and not group.get("decoupled_weight_decay", _is_a(optimizer, "AdamW")):
                facts["weight_decay"] = math.nan  # Adam's joins the gradient and is divided as it is: no rate of decay
        else:
            facts["momentum"] = float(group["momentum"])
            if rule == "sgd" and group["momentum"]:
                facts["rate"] *= 1.0 - float(group["dampening"])
            if rule == "muon":
                facts["stretch"] = _stretch(group, parameter)
        return facts

    def _step_at_hand(self) -> int:
        """Of a forward pass; 0 for one that is no step's."""
        return 0 if self._curvature is not None and self._curvature.running else self.steps + 1

    def _seeing(self, norm: _Norm) -> Callable[..., None]:
        def see(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if getattr(module, "_is_replica", False):  # DataParallel's, in a thread and on a device of its own
                return
            # Where no graph is recorded, nothing is being trained.
            step = self._step_at_hand()
            if torch.is_grad_enabled() and step and self._tracer.due(step):
                self._seen = step
                self._tracer.see(norm.address, norm.normalized(given[0]))

        return see

    def _showing(self, inputs: bool) -> Callable[..., None]:
        itself = weakref.ref(self)  # what C++ holds is not collected

        def step() -> int:
            tracing = itself()
            return tracing._step_at_hand() if tracing is not None else 0

        def show(module: Module, given: tuple[torch.Tensor, ...]) -> None:
            transformer = module.transformer()
            if self._shown is None or self._shown[0] is not transformer:  # another dtype, device or other tensors
                watch = _scalevec.watch_forward(transformer, self._tracer, inputs=inputs, step=step)
                self._shown = (transformer, watch)

        return show

    def _check_in_place(self) -> None:
        for name, p in self._model.named_parameters():
            before, pointer = self._named.get(name, (None, 0))
            if p is not before or p.data_ptr() != pointer:
                raise RuntimeError(
                    f"sv.trace: {name} is not, or not where, it was when the trace began, which would see nothing of it any "
                    "more; move the model, change its dtype and load its state first, and trace it then"
                )

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) in self._moved:
            raise RuntimeError(
                f"sv.trace: the optimizer steps again, and tracer.step() has not been called since step {self.steps + 1}; "
                "call it after every step, and close the tracer where it is to see no more"
            )
        if not self._begun:
            step = self.steps + 1
            if self._tracer.due(step):
                self._check_in_place()
                if self._seen not in (None, step):
                    raise RuntimeError(
                        f"sv.trace: inputs=True has seen no norm's input in step {step}; where torch.compile's wrapper ran "
                        "before the trace began, begin it before the first pass or call torch.compiler.reset(); else run "
                        "the model, with its graph, before optimizer.step()"
                    )
            if self._curvature is not None and (step == 1 or step % self._curvature_every == 0):
                self._curvature.note(self._tracer)
            self._tracer.before(step, self._facts)
            self._begun = True

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._moved.add(id(optimizer))
        if len(self._moved) == len(self._optimizers):
            self._tracer.after(self.steps + 1, self._facts)

    def step(self) -> None:
        """Ends a training step: call it after the optimizer's step (of every optimizer, where there are several)."""
        if len(self._moved) != len(self._optimizers):
            raise RuntimeError(
                "tracer.step(): the optimizer has not moved since the last one; call it after optimizer.step(), once a step"
            )
        self._moved.clear()
        self._begun = False
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """For your checkpoint: `trace(..., resume=state)` goes on with the same trace after that step."""
        return {"steps": self.steps, "tensors": self._tracer.state()}

    def input_moments(self, address: str) -> torch.Tensor:
        """S = E[x x^T] of what the maps behind a norm were given in the last row, before the vector.

        (width, width) float64; of more than 2,048 channels its diagonal, (width,). Ask after `step()`, before the next
        forward pass. E_STATE without `inputs=True` and where there is no row yet, E_ADDR.
        """
        return self._tracer.input_moments(address)

    def save_inputs(self, path: str | os.PathLike[str]) -> None:
        """Writes `input_moments` of every norm that was seen, as HDF5 (docs/results_file.md), over an earlier file there.
        E_STATE as there."""
        self._tracer.save_inputs(path)

    @property
    def gauge_faults(self) -> list[tuple[str, int, int, float, str]]:
        """(address, step, channel, residual, column) of sites one of whose identities failed: a wrong reduction, a
        missed reader, a norm's wrong backward. For the column scale_inv_residual `channel` is the first row of a group of
        the map; for length_residual it is 0, and says nothing."""
        return self._tracer.gauge_faults

    def close(self) -> str:
        """Finishes the file. Returns what could not be kept, empty for nothing. Ctrl-C leaves a trace that is whole, but not
        merged: `scalevec trace merge` makes the file."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._shown is not None:
            self._shown[1].stop()
            self._shown = None
        return self._tracer.close()

    def __enter__(self) -> Tracing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def trace(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | list[torch.optim.Optimizer],
    path: str | os.PathLike[str],
    *,
    every: int = 10,
    resume: dict[str, Any] | None = None,
    first: int = 0,
    vectors: list[_scalevec.TracedVector] | None = None,
    inputs: bool = False,
    curvature: Callable[[], torch.Tensor] | None = None,
    curvature_every: int = 100,
) -> Tracing:
    """Traces the scale vectors of a model in a PyTorch loop of your own.

    ::

        with sv.trace(model, optimizer, "run.h5", every=10) as tracer:
            for batch in batches:
                loss(model, batch).backward()
                optimizer.step()
                tracer.step()
                optimizer.zero_grad()

    It reads and copies, and changes no bit of the training. It looks at gradients inside `optimizer.step()`, so
    clipping is seen and `zero_grad` may come at any time.

    Args:
        model: scalevec.Module, or transformers' LlamaForCausalLM or LlamaModel; of one that torch.compile or
            DistributedDataParallel wraps, the model itself, which the wrapper trains.
        optimizer: torch.optim's SGD, Adam, AdamW or Muon, or a list of them (Muon with AdamW).
        path: the trace; while it grows it is the folder "run.h5.live", which `open_trace` reads as well.
        every: steps from row to row.
        resume: what `Tracing.state_dict()` gave when the training was saved: goes on with that trace, and drops rows
            of later steps, since the training makes them again.
        first: steps that the training has behind it where the trace begins anew.
        vectors: what to trace instead of all that `model` has: stored tensors that its optimizer moves, and the maps
            that read them.
        inputs: also what the maps behind norms read (docs/trace_metrics.md, 33), of every forward pass that records a
            graph: second moments in float64, which cost a product of two (tokens, width) matrices per norm and row. A compiled
            model is cut at each norm, and slower.
        curvature: returns the loss, with its graph, of the predictions whose curvature is to be traced as well
            (docs/trace_metrics.md, 34 and 36), such as `lambda: model(**batch).loss`. Of a vector with components the
            effective values are what is differentiated. It is called in
            `optimizer.step()`, and no gradient of yours is touched. Its gradients are differentiated again some 57
            times for each norm: give it a few windows.
        curvature_every: steps from one such row to the next, a multiple of `every`; the first step is one too.

    Raises:
        TypeError: for another model or optimizer, and for a wrapper of a model (torch.compile's, DataParallel's).
        ValueError: inputs of vectors that you give yourself; curvature of such as are no parameters, or of a loss that
            does not depend on them; curvature_every no multiple of every.
        OSError: E_PATH where the path is taken, or with `resume` where there is no trace.
    """
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    if not isinstance(model, torch.nn.Module) or not all(isinstance(o, torch.optim.Optimizer) for o in optimizers):
        came = ", ".join(type(given).__name__ for given in (model, *optimizers))
        raise TypeError(
            f"sv.trace: expected a torch.nn.Module, then a torch.optim.Optimizer or a list of them, then the path; got {came}"
        )
    return Tracing(
        model, optimizers, path, every=every, resume=resume, first=first, vectors=vectors, inputs=inputs,
        curvature=curvature, curvature_every=curvature_every,
    )  # fmt: skip
