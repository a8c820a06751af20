"""Find, trace and edit every normalization scale vector of a transformer, and measure what each of them does.

::

    import scalevec as sv

    model = sv.load("SmolLM2-135M-Instruct.Q4_1.gguf")
    model.scales                                    # a table
    with model.edit() as edit:                      # taken back at the end, bit for bit
        edit.rescale("layers.{0..9}.*.input_norm", 0.9)
        change = sv.measure(model, text)            # loss, KL, flips, with intervals
    edit.save("calm.sv.json")
"""

import torch as _torch  # noqa: F401  (its libraries must be loaded before the extension)

from scalevec import data as data
from scalevec._scalevec import Change as Change
from scalevec._scalevec import Checkpoint as Checkpoint
from scalevec._scalevec import Corpus as Corpus
from scalevec._scalevec import Experiment as Experiment
from scalevec._scalevec import Figure as Figure
from scalevec._scalevec import KvCache as KvCache
from scalevec._scalevec import Site as Site
from scalevec._scalevec import version as __version__
from scalevec.editing import Edit as Edit
from scalevec.editing import EditBlock as EditBlock
from scalevec.editing import RoundingWarning as RoundingWarning
from scalevec.editing import append as append
from scalevec.editing import export as export
from scalevec.editing import read_edit as read_edit
from scalevec.editing import rebase as rebase
from scalevec.editing import revert as revert
from scalevec.errors import AddressError as AddressError
from scalevec.errors import DeviceError as DeviceError
from scalevec.errors import Error as Error
from scalevec.errors import FileError as FileError
from scalevec.errors import InvalidError as InvalidError
from scalevec.generating import Continuation as Continuation
from scalevec.measuring import Measurement as Measurement
from scalevec.measuring import measure as measure
from scalevec.model import Model as Model
from scalevec.model import inspect as inspect
from scalevec.model import load as load
from scalevec.module import Module as Module
from scalevec.scales import Scale as Scale
from scalevec.scales import Scales as Scales
from scalevec.screening import Entry as Entry
from scalevec.screening import Saliency as Saliency
from scalevec.tokenizer import Tokenizer as Tokenizer
from scalevec.trace_file import Trace as Trace
from scalevec.trace_file import merge_trace as merge_trace
from scalevec.trace_file import open_trace as open_trace
from scalevec.tracing import Tracing as Tracing
from scalevec.tracing import trace as trace
from scalevec.trainer_callback import trace_callback as trace_callback
from scalevec.training import Run as Run
from scalevec.training import train as train

__all__ = [
    "AddressError", "Change", "Checkpoint", "Continuation", "Corpus", "DeviceError", "Edit", "EditBlock", "Entry", "Error", "Experiment",
    "Figure", "FileError", "InvalidError", "KvCache", "Measurement", "Model", "Module", "RoundingWarning", "Run", "Saliency", "Scale",
    "Scales", "Site", "Tokenizer", "Trace", "Tracing", "__version__", "append", "data", "export", "inspect", "load", "measure", "merge_trace",
    "open_trace", "read_edit", "rebase", "revert", "trace", "trace_callback", "train",
]  # fmt: skip
