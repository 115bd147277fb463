# Each target sets up what it needs: `make demo` and `make test` work as the first command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
KERNEL := $(shell find jaxrnn/native -name "*.cc" -o -name "*.h" -o -name CMakeLists.txt)

.PHONY: demo test bench lint parity sanitize clean

demo: $(READY)
	$(BIN)/python examples/spoken_vowels.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# `make bench FULL=1` measures the whole grid, for hours.
bench: $(READY)
	$(BIN)/python benchmarks/run.py $(if $(FULL),--full)

parity: $(READY)
	$(BIN)/python parity_tests/table.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The CPU kernel in a program of its own, watched by AddressSanitizer and UBSan, then by ThreadSanitizer.
sanitize: $(READY)
	for kind in address,undefined thread; do \
	  cmake -S jaxrnn/native -B build/$$kind -DJAXRNN_CHECK=ON -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_CXX_FLAGS="-g -O1 -fsanitize=$$kind -fno-sanitize-recover=all" \
	    -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  && cmake --build build/$$kind --parallel --target jaxrnn_check \
	  && build/$$kind/jaxrnn_check || exit 1; \
	done

$(READY): pyproject.toml constraints.txt $(KERNEL)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "jaxrnn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[torch,examples]' --group test --group lint --group bench
	@touch $@

clean:
	rm -rf $(VENV)
