PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test test-slow faults lint docs bench

# Trains a minLSTM on a^n b^n and prints which rules its completions keep. More: make run ARGS="model=lstm grammar=L5"
run: $(VENV)/.installed
	$(BIN)/python -m rule_extrapolation.runner $(ARGS)

# One single-threaded process per core.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# Kills, full disks, planted code and more; writes docs/faults.md. Only some of it: make faults ARGS="--only kill"
faults: $(VENV)/.installed
	$(BIN)/python tests/faults/campaign.py $(ARGS)

# Speed compared with other packages and naive code. Only some of it: make bench ARGS="decoding steps"
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

# The documentation's site, in site/.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# torch comes first, for packages that need torch to build.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,bench]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,docs]"
	touch $@
