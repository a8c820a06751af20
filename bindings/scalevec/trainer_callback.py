"""The tracer on transformers' Trainer."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import torch

from scalevec.tracing import Tracing, is_there, trace


def _write_state(file: pathlib.Path, state: dict[str, Any]) -> None:
    tensors = {f"tensor {name}": t.detach().cpu() for name, t in state["tensors"].items()}
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    beside = file.with_name(f".{file.name}.part")
    with beside.open("wb") as out:
        np.savez(out, steps=np.int64(state["steps"]), **arrays)
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, file)


def _read_state(file: pathlib.Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as kept:
        tensors = {n.removeprefix("tensor "): torch.from_numpy(kept[n]) for n in kept.files if n != "steps"}
        return {"steps": int(kept["steps"]), "tensors": tensors}


def trace_callback(path: str | os.PathLike[str], *, every: int = 10, inputs: bool = False) -> Any:
    """The same for transformers' Trainer: `Trainer(..., callbacks=[sv.trace_callback("run.h5")])`.

    Checkpoints hold what the trace goes on from, scalevec_trace.npz: `trainer.train(resume_from_checkpoint=True)`
    drops the rows of later steps and goes on with the same file. Where the trace is gone, a new one begins at that step;
    where it stands and the checkpoint in `output_dir` holds nothing of it, it is refused (E_PATH): give another path.
    """
    from transformers import TrainerCallback

    def kept(args: Any, state: Any) -> pathlib.Path:
        return pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}" / "scalevec_trace.npz"

    class Callback(TrainerCallback):  # type: ignore[misc]
        tracing: Tracing | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given["optimizer"]
            inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            goes_on = is_there(path) and kept(args, state).exists()
            resume = _read_state(kept(args, state)) if goes_on else None
            self.tracing = trace(
                given["model"], inner, path, every=every, first=state.global_step, inputs=inputs, resume=resume
            )

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            file = kept(args, state)
            if self.tracing is not None and state.is_world_process_zero and file.parent.is_dir():
                _write_state(file, self.tracing.state_dict())

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.tracing is not None:
                self.tracing.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.tracing is not None:
                self.tracing.close()

    return Callback()
