# Needs GNU make and python3 (3.11 or newer) with venv; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -q -c requirements.lock
TORCH := $(shell sed -n '/^torch==/p' requirements.lock)
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lint test demo bench fixtures lock clean

help:
	@echo 'make test      set up, lint, run all tests (ARGS="-k name" to choose)'
	@echo 'make demo      convert a trained network, verify it, write the report to out/demo/'
	@echo 'make bench     side by side with the peers'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make fixtures  train the fixtures again'
	@echo 'make setup     .venv with everything, at the versions of requirements.lock'
	@echo 'make lock      write the versions in .venv to requirements.lock'
	@echo 'make clean     remove what was made, except .venv'

setup: $(READY)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit("interlux needs Python 3.11 or newer; choose one: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo 'setup: $(VENV)'
	@$(PYTHON) -m venv --clear $(VENV)

# Torch first and by itself: it is by far the largest download.
$(READY): pyproject.toml requirements.lock | $(PY)
	@echo 'setup: $(TORCH) (large, can take minutes)'
	@$(PIP) '$(TORCH)'
	@echo 'setup: interlux and everything else'
	@$(PIP) -e '.[all,dev]'
	@touch $@
	@echo 'setup: done'

lint: $(READY)
	@echo 'lint: ruff'
	@$(PY) -m ruff check --quiet .
	@echo 'lint: mypy'
	@$(PY) -m mypy --no-error-summary
	@echo 'lint: imports'
	@$(VENV)/bin/lint-imports --no-logo

test: lint
	@echo 'test: pytest'
	@$(PY) -m pytest -n 2 --dist loadgroup -q $(ARGS)

demo: $(READY)
	@$(PY) -m interlux.demo $(ARGS)

bench: $(READY)
	@$(PY) -m benchmarks $(ARGS)

fixtures: $(READY)
	@$(PY) -m fixtures.make $(ARGS)

# No local suffix (+cpu): the constraint holds for every build of that version.
lock: $(READY)
	@{ sed -n '/^#/p' requirements.lock; \
	   $(PY) -m pip freeze -q --exclude-editable | sed 's/+[a-z0-9.]*$$//' | grep -v '^$$' | LC_ALL=C sort -f; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(READY)

clean:
	@rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find interlux tests fixtures benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
