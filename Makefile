# make demo and make test need Python 3.11+, a C compiler and git; everything else goes into .venv.

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := edgemem export quant runtimes devices tests bench
# One thread per test process: two workers with thread pools of their own would fight over the cores.
SINGLE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Compilers, emulators and OpenCL for boards; the tests that need one skip without it and name this target.
BOARD_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm qemu-system-misc qemu-user \
  gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-riscv64-linux-gnu gcc-riscv64-unknown-elf \
  libc6-dev-arm64-cross libc6-dev-armhf-cross libc6-dev-riscv64-cross \
  picolibc-riscv64-unknown-elf pocl-opencl-icd ocl-icd-opencl-dev
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: demo test check wheel bench boards clean

demo: $(INSTALLED)
	$(BIN)/edgemem demo

test: $(INSTALLED)
	$(SINGLE) $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	rm -rf build/types build/lib
	$(BIN)/pip install -q --no-deps --target build/types .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p edgemem

wheel: $(INSTALLED)
	rm -rf dist build/lib build/wheel
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/pip install -q $(PIP_FLAGS) -c constraints.txt "$$(ls dist/*.whl)[export]"
	$(BIN)/python tests/readme.py > build/wheel/examples.py
	cd build/wheel && bin/python examples.py

bench: $(INSTALLED)
	$(SINGLE) $(BIN)/python -m bench.footprint
	$(SINGLE) $(BIN)/python -m bench.stream_overhead
	$(SINGLE) $(BIN)/python -m bench.compiled

boards:
	@missing=""; for package in $(BOARD_PACKAGES); do \
	  dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; \
	fi

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes) ..."
	$(BIN)/pip install -q --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/pip install -qq $(PIP_FLAGS) -c constraints.txt -e ".[all,dev]"
	touch $(INSTALLED)
