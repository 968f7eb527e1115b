# Every target sets itself up: all you need is Python >= 3.11 with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in one process more than there are cores; JOBS=0 runs them in a single one.
JOBS ?= auto
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

UV := $(BIN)/uv
LOWEST := $(VENV)-lowest
# A few tests for each package that we depend on; takes a minute.
LOWEST_TESTS := tests/test_api.py tests/options/test_resolve.py tests/results/test_write.py \
	tests/results/test_read.py tests/figures/test_look.py tests/figures/test_curves.py \
	tests/jacobian/test_engine.py tests/spectrum/test_closed_forms.py \
	tests/checkpoints/test_formats.py tests/model/test_build.py tests/cli/test_main.py

.PHONY: demo dist docs test test-docs test-families test-processes test-long test-lowest fuzz lint types bench bench-pictures samples clean

# On a terminal analyze prints the table; a log gets the same one from the file.
demo: $(VENV)/.plot
	@mkdir -p demo
	$(BIN)/localrank analyze sample_checkpoints/mnist_mlp --overwrite -o demo/mnist_mlp.csv
	@test -t 1 || $(BIN)/localrank show demo/mnist_mlp.csv --no-chart
	@$(BIN)/localrank analyze sample_checkpoints/mnist_mlp sample_checkpoints/mnist_mlp_no_decay -q --overwrite -o demo/ranks.csv > /dev/null
	$(BIN)/localrank plot demo/ranks.csv --kind compare -o demo/ranks.png
	@echo "To use localrank in this shell: source $(BIN)/activate"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# Every family of transformers that docs/models.md lists, and checkpoints in published packages;
# takes a few minutes.
test-families: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m families

# Real processes, servers and schedulers: Slurm, a Hub and an S3 on the loopback, a browser, kill -9,
# full disks, closed pipes; takes a few minutes.
test-processes: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'processes and not long and not fuzz'

# Every example of the documentation does what its page says; the notebook; the site.
test-docs: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'pages and not long'

# The lowest versions that pyproject.toml allows, among those with wheels for this Python; without
# the packages that only some tests need, since they require later versions. Deprecation warnings of
# the installed packages are not errors. Installs several GB: pip has a CPU-only torch on some
# systems only.
LOWEST_PYTHON ?= $(PYTHON)
test-lowest: $(VENV)/.base
	$(INSTALL) uv
	$(UV) venv --quiet --clear --no-python-downloads --python $(LOWEST_PYTHON) $(LOWEST)
	printf '%s\n' accelerate lightning transformers > $(LOWEST)/excludes
	VIRTUAL_ENV=$(LOWEST) $(UV) pip install --quiet --resolution lowest-direct \
		--excludes $(LOWEST)/excludes --only-binary matplotlib --only-binary numpy \
		--only-binary pandas --only-binary pyarrow --only-binary pydantic-core \
		--only-binary safetensors --only-binary scipy -e '.[test,plot]'
	$(LOWEST)/bin/localrank analyze --help > /dev/null
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadgroup -W default::DeprecationWarning $(LOWEST_TESTS)

# Tests that take too long for every change: full products of cases, many more kill -9, many more
# random inputs.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long -n $(JOBS) --dist loadgroup

# Random and corrupted inputs; takes a few minutes, and prints how many were tried (FUZZ=N of each
# kind).
fuzz: $(VENV)/.dev
	LOCALRANK_FUZZ=$(or $(FUZZ),3000) $(BIN)/python -m pytest -m fuzz tests/faults

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# The documentation as a site, in site/. A broken link is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Build and check the wheel and the sdist, then install and try the wheel in a new environment.
dist: $(VENV)/.base
	rm -rf dist $(VENV)-dist
	$(INSTALL) build twine
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && ../$(VENV)-dist/bin/localrank analyze ../sample_checkpoints/gaussian_teacher -q --last 2 | grep -c rtol=0.1

# Compare with what a user would write today; benchmarks/README.md holds the latest table.
bench: $(VENV)/.base
	$(BIN)/python benchmarks/bench.py $(BENCH)

# Time the pictures and pages of long runs.
bench-pictures: $(VENV)/.plot
	$(BIN)/python benchmarks/pictures.py

# Retrain the sample networks: make samples MNIST=path/to/digits.npz
samples: $(VENV)/.base
	$(BIN)/python sample_checkpoints/make_samples.py --mnist "$(MNIST)"

clean:
	rm -rf $(VENV) $(LOWEST) demo

# The marker files make a second run quick: pip runs again only if these two files have changed.
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
