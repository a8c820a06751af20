"""Prints the folder of the torch package that this Python would use; nothing if there is none.

A build in pip's isolated environment does not see the site-packages of the environment it installs into, but
sysconfig still names it: that torch is the one the result will run with.
"""

import importlib.util
import pathlib
import sysconfig

spec = importlib.util.find_spec("torch")
candidates = [pathlib.Path(p) for p in spec.submodule_search_locations] if spec else []
candidates += [pathlib.Path(sysconfig.get_paths()[key]) / "torch" for key in ("platlib", "purelib")]
print(next((str(c) for c in candidates if (c / "include/ATen/core/Tensor.h").exists()), ""), end="")
