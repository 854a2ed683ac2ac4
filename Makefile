# make demo and make test work from a clean clone: they set up what they need first.

PYTHON ?= python3
MEDIA ?=
TO ?= es
PROFILE ?= embedded
SEEDS ?= 500
WITHOUT ?=
export WITHOUT

BIN := .venv/bin
CODE := protocol sts_trio tests benchmarks demo

$(if $(filter-out tts,$(WITHOUT)),$(error WITHOUT=$(WITHOUT): only tts can be left out))
$(if $(filter-out embedded production,$(PROFILE)),$(error PROFILE=$(PROFILE): there are embedded and production))

# What is installed, as extras of pyproject.toml: a demo needs little, the tests all that is not left out.
PRODUCTION := asr translation tts
GPU := $(if $(shell command -v nvidia-smi),gpu)
TO_RUN := $(if $(filter production,$(PROFILE)),$(PRODUCTION) $(GPU),embedded)
TO_TEST := embedded $(filter-out $(WITHOUT),$(PRODUCTION)) test

space := $(subst ,, )
comma := ,
installed = .venv/.installed-$(subst $(space),-,$1)

.PHONY: help setup demo test lint types simulate serve clean

help:
	@echo "make demo [MEDIA=file] [TO=es]  dub half a minute of English news, or a file, into build/demo/"
	@echo "make demo PROFILE=production    the same with faster-whisper, DeepL and XTTS: needs a key and models"
	@echo "make test                       everything that must hold: lint, types, all tests"
	@echo "make test WITHOUT=tts           the same without torch and coqui-tts, a few GB less to install"
	@echo "make simulate [SEEDS=500]       whole servers in virtual time, with everything going wrong that can"
	@echo "make serve [PROFILE=embedded]   a server on port 8000"
	@echo "make setup                      only install what the tests need"
	@echo "make lint                       style, formatting, direction of imports"
	@echo "make types                      mypy"
	@echo "make clean                      remove all that was built and installed here"

demo: $(call installed,$(TO_RUN)) | system-packages
	$(BIN)/python demo/run.py --profile $(PROFILE) --to "$(TO)" $(if $(MEDIA),--media "$(MEDIA)")

test: lint types
	$(BIN)/pytest
	$(BIN)/sts-trio simulate --seeds 0:100000 --within 5
	@$(if $(WITHOUT),echo "Left out: the tests of $(WITHOUT) (WITHOUT=$(WITHOUT)). make test runs them all.")

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy
	$(BIN)/mypy demo/run.py

simulate: $(call installed,$(TO_RUN)) | system-packages
	$(BIN)/sts-trio simulate --seeds 0:$(SEEDS)

serve: $(call installed,$(TO_RUN)) | system-packages
	$(BIN)/sts-trio serve --profile $(PROFILE)

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache sts_trio.egg-info

setup: $(call installed,$(TO_TEST)) | system-packages

# Commands that are not Python packages are looked for each time, which takes no time.
.venv/.installed-%: constraints.txt pyproject.toml $(BIN)/python
	@echo "Installing Python packages into .venv: $(subst -,$(comma) ,$*)"
	@mkdir -p build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(subst -,$(comma),$*)]' \
	  2>build/pip.log || { cat build/pip.log >&2; exit 1; }
	@touch $@

# Debian's Python has no ensurepip without its package python3-venv; virtualenv from PyPI needs none.
$(BIN)/python: | system-packages
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null && $(PYTHON) -m venv .venv || ( \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet .venv )

.PHONY: system-packages
system-packages:
	@tools/system-packages $(PYTHON)
