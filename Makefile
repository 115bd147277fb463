# Each target sets up what it needs: `make demo` and `make test` work as the first command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed

.PHONY: demo test lint parity clean

demo: $(READY)
	$(BIN)/python examples/spoken_vowels.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

parity: $(READY)
	$(BIN)/python parity_tests/table.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "jaxrnn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[torch,examples]' --group test --group lint
	@touch $@

clean:
	rm -rf $(VENV)
