# Each target makes .venv when it is missing, and installs into it what the target needs, once.
# PYTHON=python3.12 names the interpreter; by default the newest python3.x that runs and can make a venv.

PYTHON ?=
TORCH_PYTHON ?=
BENCH_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo compare theory bench test test-quick test-all test-lowest test-wheel lint docs
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-train
	$(BIN)/python experiments/train.py --groups=2 --workers=4 --sampling=iid --batch_size=32

compare: $(VENV)/.installed-train
	$(BIN)/python experiments/compare.py --flagfile=experiments/flagfiles/digits.flags --workdir=runs/compare

theory: $(VENV)/.installed-train
	$(BIN)/python experiments/theory.py

# What is measured beside PyTorch needs an interpreter that has it: .venv, or another with TORCH_PYTHON=...
bench: $(VENV)/.installed-train
	$(BIN)/python benchmarks/bench.py $(addprefix --torch_python=,$(TORCH_PYTHON)) $(BENCH_FLAGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist=worksteal -m "not thorough"

# With whole experiments, and combinations of what those tests cover one by one; before a release.
test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist=worksteal

# A minute of it, for a loop of changes and tests; two where nothing is compiled yet.
test-quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist=worksteal -m "not slow and not processes"

# The same with the lowest versions that setup.cfg allows, in an environment of its own; before a bound changes.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n auto --dist=worksteal -m "not slow and not processes"

# The wheel, in an empty environment that gets what it declares: the README's program, its report and the demo's first steps.
test-wheel: | $(BIN)/python
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && unset PYTHONPATH && mkdir "$$folder/sources" && \
	cp -r lsgd_jax setup.cfg pyproject.toml README.md LICENSE "$$folder/sources" && \
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir="$$folder" "$$folder/sources" && \
	$(BIN)/python -m venv --without-pip "$$folder/venv" && \
	$(BIN)/python -m pip --quiet --python="$$folder/venv" install "$$(echo "$$folder"/*.whl)[train]" && \
	awk '/^```python/ {on = 1; next} /^```/ {if (on) exit} on' README.md > "$$folder/own.py" && \
	cd "$$folder" && ./venv/bin/python own.py && ./venv/bin/python -m lsgd_jax.report runs/own && \
	./venv/bin/python -m lsgd_jax.train --workdir=runs/demo --groups=1 --workers=2 --steps=4

# The site, in site/: python -m http.server --directory=site shows it, search included.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(LOWEST)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python=$(LOWEST) --resolution=lowest-direct --editable '.[test]'
	@touch $@

$(BIN)/python:
	@fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	found=; bare=; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		"$$python" -c "$$fits" 2>/dev/null || continue; \
		if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then found="$$python"; break; fi; \
		bare="$${bare:-$$python}"; \
	done; \
	if [ -n "$$found" ]; then \
		echo "making $(VENV) with $$found"; \
		"$$found" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
	elif [ -n "$$bare" ]; then \
		version=$$("$$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$$bare cannot make virtual environments: apt-get install python$$version-venv" >&2; exit 1; \
	else \
		echo "no Python 3.11 to 3.13 runs here as $(or $(PYTHON),python3.x): install one (apt-get install python3 python3-venv), or name it with PYTHON=..." >&2; exit 1; \
	fi

# A .venv of another interpreter than the one that was asked for is told, not replaced.
ifneq ($(PYTHON),)
ifneq ($(wildcard $(BIN)/python),)
version = $(shell $(1) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
ifeq ($(call version,$(PYTHON)),)
$(error $(PYTHON) does not run here: name another with PYTHON=..., or leave it out)
endif
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
$(error $(VENV) is of Python $(call version,$(BIN)/python), not of $(PYTHON): remove it (rm -r $(VENV)) and call again)
endif
endif
endif
