"""Prints the folder of the torch package that this Python would use; nothing if there is none.

A build in pip's isolated environment does not see the site-packages of the environment it installs into, but the site
module still names it: that torch is the one the result will run with.
"""

import importlib.util
import pathlib
import site

spec = importlib.util.find_spec("torch")
candidates = [*(spec.submodule_search_locations if spec else ()), *(f"{s}/torch" for s in site.getsitepackages())]
print(next((c for c in candidates if pathlib.Path(c, "include/ATen/core/Tensor.h").exists()), ""), end="")
