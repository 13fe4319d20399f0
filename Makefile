# Python 3.11 or newer and make are all that is needed. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python

# The quickstart: a run folder of its own, and a budget that this machine's own table decides.
RUN := runs/quickstart
BUDGET := 60%

# Where the published tables lie that lut/ is made from (lut/README.md says where they come from).
V100 := ../shared/data

# Engines are built in the tests wherever there are wheels of TensorRT for RTX: large ones, so that the quickstart leaves
# them out. Where they cannot be had, the tests that need them are skipped and say so.
TENSORRT := $(VENV)/.tensorrt

# Types of TensorRT, from the module that is installed: its wheels have none, and those of PyPI's tensorrt-stubs are broken.
STUBS := build/stubs/tensorrt_rtx/__init__.pyi

.PHONY: help quickstart test lint bench clean dataset sshd shipped-tables

help:
	@echo "make quickstart  install, profile this CPU, search under a latency budget, verify on the device"
	@echo "make test        install, lint, types and the whole test suite"
	@echo "make lint        ruff and mypy"
	@echo "make bench       the benchmarks whose figures the README quotes"
	@echo "make shipped-tables  lut/*.lut anew from the files they are imported from (V100=FOLDER)"
	@echo "make clean       remove what make built; runs/ and tables/ stay"

# Made again when pyproject.toml changes. The stamp is written last: an interrupted installation is repeated.
$(READY): pyproject.toml
	@python=""; \
	for candidate in $(PYTHONS); do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "make: hwnas needs Python 3.11 or newer and found none; install it, or name one: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "make: $$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	echo "Installing hwnas into $(VENV) (the first time this downloads PyTorch)"; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(TENSORRT): $(READY)
	@echo "Installing tensorrt-rtx into $(VENV) (the first time this downloads about 250 MB)"; \
	if $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[tensorrt-rtx]"; then touch $@; \
	else echo "tensorrt-rtx cannot be installed here: what needs it is skipped"; fi

# Fashion-MNIST from Debian's package where that is possible; otherwise the first search downloads it through torchvision.
dataset:
	@if [ ! -d /usr/share/datasets/fashion-mnist ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get install --yes --quiet dataset-fashion-mnist >/dev/null 2>&1 \
		|| { apt-get update --quiet && apt-get install --yes --quiet dataset-fashion-mnist; } >/dev/null 2>&1 \
		|| echo "Debian's package dataset-fashion-mnist could not be installed: torchvision will download the data"; \
	fi

# Every step goes on where an earlier, interrupted one stopped.
quickstart: $(READY) dataset
	$(BIN)/hwnas profile --device cpu --space proxyless-tiny
	$(BIN)/hwnas search --method spos --space proxyless-tiny --data fashion-mnist --device cpu --latency $(BUDGET) --recipe quickstart --out $(RUN)
	$(BIN)/hwnas verify $(RUN) --device cpu

$(STUBS): $(READY) $(TENSORRT)
	@if $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null; then \
		$(BIN)/python -c 'from mypy.stubgen import main; main()' --quiet -p tensorrt_rtx -p tensorrt_rtx_bindings -o build/stubs; \
		sed -i -E '/= \.\.\., [a-z_]+: [^=(),]*\) ->/d' build/stubs/tensorrt_rtx_bindings/tensorrt_rtx.pyi; \
	else echo "tensorrt-rtx is not installed here: what is used of TensorRT is not type-checked"; fi

lint: $(READY) $(STUBS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A server on loopback, for the tests of devices that are elsewhere; without it they are skipped.
sshd:
	@if [ ! -x /usr/sbin/sshd ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get install --yes --quiet openssh-server >/dev/null 2>&1 \
		|| { apt-get update --quiet && apt-get install --yes --quiet openssh-server; } >/dev/null 2>&1 \
		|| echo "Debian's package openssh-server could not be installed: the tests over ssh are skipped"; \
	fi

test: lint dataset sshd
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(READY)
	$(BIN)/python benchmarks/pricing.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/prediction.py --quick
	$(BIN)/python benchmarks/torchvision_nets.py
	$(BIN)/python benchmarks/budget_audit.py

shipped-tables: $(READY)
	@for precision in fp32 fp16; do \
		$(BIN)/hwnas lut import $(V100)/v100_tensorrt_$$precision.txt.gz --format alibaba-trt --batch 32 --precision $$precision \
			--device-name "Tesla V100" --out lut/v100-tensorrt-$$precision-b32.lut; \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf *.egg-info
