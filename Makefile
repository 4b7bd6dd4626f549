# Every target makes what it needs: on a fresh machine `make demo` or `make test` is the first command.
#   make demo     train and compare KVAE pairs on the bouncing ball (minutes on two CPU cores)
#   make test     the test suite            (make test ARGS="--run-slow" for the long tests too)
#   make lint     ruff and mypy
#   make bench    speed and memory against Pyro and code written by hand
#   make docs     the documentation, warnings as errors, into docs/_build/html
#   make clean    remove the virtual environment and all build output

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CPU_WHEELS := https://download.pytorch.org/whl/cpu
ARGS ?=

.PHONY: demo test lint bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.with-plots
	$(BIN)/python examples/kvae_bouncing_ball.py --preset default --out runs/demo $(ARGS)

test: $(VENV)/.with-test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.with-plots
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.with-docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "pyro_seq needs Python 3.11 or newer, and none was found: set PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# torch first and alone. On Linux without an NVIDIA driver it comes from the index of CPU wheels, where that can be
# reached: the default wheel brings gigabytes of CUDA libraries. TORCH_INDEX="" or another index overrides the choice.
$(VENV)/.torch: constraints.txt $(VENV)/.python
	@echo "Installing torch into $(VENV) (minutes, once)"
	@index="$(TORCH_INDEX)"; \
	if [ "$(origin TORCH_INDEX)" = undefined ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 \
		&& $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' $(CPU_WHEELS)/ >/dev/null 2>&1; \
	then index=$(CPU_WHEELS); fi; \
	$(PIP) $${index:+--extra-index-url $$index} --no-deps -c constraints.txt torch
	@touch $@

$(VENV)/.with-%: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing pyro_seq[$*] into $(VENV)"
	@$(PIP) -c constraints.txt -e ".[$*]"
	@touch $@
