# Each target sets up what it needs, in stages that share .venv: `make demo` and `make test` work as
# the first command, and a target installs no more than its own stage.
PYTHON ?= python3
PYTHON313 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python) python3.13)
# Bytecode is kept: without it each process compiles the sources of all packages, for seconds.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
KERNEL := $(shell find jaxrnn/native -name '*.cc' -o -name '*.h' -o -name '*.cuh' -o -name CMakeLists.txt)
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-fast test-isa test-newest test-gpu check-cuda bench docs lint format parity rates sanitize check-aarch64 wheel clean

demo: $(VENV)/run
	$(BIN)/python examples/spoken_vowels.py

test: $(VENV)/test
	$(PYTEST)

# The core, for the inner loop: each test marked `core`.
test-fast: $(VENV)/test
	$(PYTEST) -m core

# The core as users compile it, then with XLA and oneDNN limited to older instruction sets; the kernel's
# own builds are compared by the tests wherever they run.
test-isa: $(VENV)/test
	XLA_FLAGS= $(PYTEST) -m core
	XLA_FLAGS=--xla_cpu_max_isa=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m core
	XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) -m core

# The newest releases of every dependency on the newest Python, without PyTorch. TESTS= runs everything.
TESTS ?= -m core
test-newest:
	@$(PYTHON313) -c '' 2>/dev/null \
	  || { echo "test-newest needs Python 3.13, make PYTHON313=/path/to/python3.13: skipped."; exit 0; } \
	  && $(MAKE) $(NEWEST)/test \
	  && XLA_FLAGS= $(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal --without=torch $(TESTS) parity_tests

# The tests marked `gpu`, on a machine with an NVIDIA GPU; an outcome a line in gpu-tests.txt. Products
# in full float32, and no trying out of algorithms: the tests compile thousands of small programs.
test-gpu: $(VENV)/test
	$(PIP) --editable '.[cuda]'
	JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false \
	  XLA_FLAGS="--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false" \
	  $(BIN)/python -m pytest -n 8 -v -m gpu > gpu-tests.txt 2>&1; code=$$?; tail -n 20 gpu-tests.txt; exit $$code

# Every instance of the CUDA kernels, compiled for two architectures: many minutes, no GPU.
check-cuda: $(VENV)/test
	JAXRNN_EVERY_INSTANCE=1 $(PYTEST) parity_tests/native/test_cuda_compiled.py

# `make bench FULL=1` measures the whole grid, for hours.
bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py $(if $(FULL),--full)

# The site in build/site. A broken link or reference fails, and so does the notebook's code.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The parity tables of docs/parity.md.
parity: $(VENV)/run
	$(BIN)/python tools/tables.py parity notebook

# How often the comparer errs, over thousands of right and wrong pairs: about half an hour.
rates: $(VENV)/run
	$(BIN)/python parity_tests/testing/rates.py

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find jaxrnn/native/cpu -name '*.cc' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/lint
	$(BIN)/ruff format .
	find jaxrnn/native/cpu -name '*.cc' -o -name '*.h' | xargs $(BIN)/clang-format -i

# The CPU kernel's own check under AddressSanitizer and UBSan, then under ThreadSanitizer: by default a
# few cases of the portable build, whose source is that of every instruction set.
# `make sanitize CASES=all SETS="portable;avx2;avx512"` takes half an hour.
CASES ?= few
SETS ?= portable
sanitize: $(VENV)/package
	for kind in address,undefined thread; do \
	  cmake -S jaxrnn/native -B build/$$kind -DJAXRNN_CHECK=ON "-DJAXRNN_SETS=$(SETS)" \
	    -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-g1 -O1 -fsanitize=$$kind -fno-sanitize-recover=all" \
	    -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  && cmake --build build/$$kind --parallel --target jaxrnn_check \
	  && build/$$kind/cpu/jaxrnn_check $(CASES) || exit 1; \
	done

# The kernel's check built for aarch64 and run under emulation.
AARCH64 := aarch64-linux-gnu
check-aarch64: $(VENV)/package
	@command -v $(AARCH64)-g++ >/dev/null && command -v qemu-aarch64 >/dev/null \
	  || { echo "check-aarch64 needs g++-aarch64-linux-gnu and qemu-user (Debian's names): skipped."; exit 0; } \
	  && set -x \
	  && cmake -S jaxrnn/native -B build/aarch64 -DJAXRNN_CHECK=ON -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=$(AARCH64)-g++ -DCMAKE_CXX_FLAGS="-O2 -static" \
	    -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  && cmake --build build/aarch64 --parallel --target jaxrnn_check \
	  && qemu-aarch64 build/aarch64/cpu/jaxrnn_check $(CASES)

# An sdist and a wheel in dist/, checked, installed into an empty environment and trained with.
# auditwheel takes the first patchelf on the path; the system's may be too old.
wheel: $(VENV)/publish
	rm -rf dist build/wheel build/wheel-venv
	$(BIN)/python -m build --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	build/wheel-venv/bin/python -W error -P parity_tests/repository/installed.py

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "jaxrnn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

# The package with its kernel. The stages after it add packages and build nothing: jaxrnn[extra] is
# satisfied by what is installed here.
$(VENV)/package: pyproject.toml constraints.txt $(KERNEL) | $(VENV)/pip
	$(PIP) --editable .
	@touch $@

$(VENV)/run: $(VENV)/package
	$(PIP) 'jaxrnn[torch,examples]'
	@touch $@

$(VENV)/test: $(VENV)/run
	$(PIP) --group test --group bench
	@touch $@

$(VENV)/bench: $(VENV)/run
	$(PIP) --group bench
	@touch $@

$(VENV)/docs: $(VENV)/run
	$(PIP) --group docs
	@touch $@

$(VENV)/lint: $(VENV)/package
	$(PIP) --group lint
	@touch $@

$(VENV)/publish: pyproject.toml | $(VENV)/pip
	$(PIP) --group publish
	@touch $@

$(NEWEST)/test: pyproject.toml $(KERNEL)
	$(PYTHON313) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(NEWEST)/bin/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager \
	  --editable '.[examples]' --group test --group bench
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST) build dist
