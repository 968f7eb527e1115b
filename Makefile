# Every target does its own set-up: Python >= 3.11 with venv and make are all that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in one process more than there are cores; JOBS=0 runs them in one.
JOBS ?= auto
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-families test-long fuzz lint types bench bench-pictures samples clean

demo: $(VENV)/.plot
	$(BIN)/localrank analyze sample_checkpoints/mnist_mlp
	@mkdir -p demo
	@$(BIN)/localrank analyze sample_checkpoints/mnist_mlp sample_checkpoints/mnist_mlp_no_decay -q --overwrite -o demo/ranks.csv > /dev/null
	$(BIN)/localrank plot demo/ranks.csv --kind compare -o demo/ranks.png

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# Every family of transformers that docs/models.md lists; some minutes.
test-families: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) -m families tests/families

# What takes too long for every change: many more kill -9, many more random inputs.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long

# Random and corrupted inputs, some minutes; prints how many were tried. FUZZ=N for each kind.
fuzz: $(VENV)/.dev
	LOCALRANK_FUZZ=$(or $(FUZZ),3000) $(BIN)/python -m pytest -m fuzz tests/faults

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Side by side with what a user would write today; benchmarks/README.md holds the last table.
bench: $(VENV)/.base
	$(BIN)/python benchmarks/bench.py $(BENCH)

# How long pictures and pages of long runs take.
bench-pictures: $(VENV)/.plot
	$(BIN)/python benchmarks/pictures.py

# Trains the sample networks again: make samples MNIST=path/to/digits.npz
samples: $(VENV)/.base
	$(BIN)/python sample_checkpoints/make_samples.py --mnist "$(MNIST)"

clean:
	rm -rf $(VENV) demo

# The marks make a second run quick: pip runs again only when these two files have changed.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("localrank needs Python >= 3.11: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.plot: $(VENV)/.base
	$(INSTALL) -e '.[plot]'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(INSTALL) -e '.[dev]'
	touch $@
