# make demo and make test work from a clean clone: they set up what they need first.

PYTHON ?= python3
MEDIA ?=
TO ?= es

BIN := .venv/bin
CODE := protocol sts_trio tests benchmarks demo

.PHONY: help setup demo test lint types serve clean

help:
	@echo "make demo [MEDIA=file] [TO=es]  dub half a minute of English news, or a file, into build/demo/"
	@echo "make test                       everything that must hold: lint, types, all tests"
	@echo "make serve                      a server with the embedded engines, on port 8000"
	@echo "make setup                      only install what the others need"
	@echo "make lint                       style, formatting, direction of imports"
	@echo "make types                      mypy"
	@echo "make clean                      remove all that was built and installed here"

demo: setup
	$(BIN)/python demo/run.py --to "$(TO)" $(if $(MEDIA),--media "$(MEDIA)")

test: lint types
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy
	$(BIN)/mypy demo/run.py

serve: setup
	$(BIN)/sts-trio serve --profile embedded

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache sts_trio.egg-info

setup: .venv/.installed

# Commands that are not Python packages are looked for each time, which takes no time.
.venv/.installed: constraints.txt pyproject.toml $(BIN)/python
	@echo "Installing Python packages into .venv"
	@mkdir -p build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,test]' \
	  2>build/pip.log || { cat build/pip.log >&2; exit 1; }
	@touch $@

# Debian's Python has no ensurepip without its package python3-venv; virtualenv from PyPI needs none.
$(BIN)/python: | system-packages
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null && $(PYTHON) -m venv .venv || ( \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet .venv )

.PHONY: system-packages
setup: system-packages
system-packages:
	@tools/system-packages $(PYTHON)
