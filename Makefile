# The two commands that matter: `make run` and `make test`. Either sets up .venv on
# first use. On another Python: make venv PYTHON=/path/to/python3

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.installed-run
BIN := $(VENV)/bin

# Options of the recipe, e.g. make run ARGS="--corpus mini_an4"
ARGS :=
# Options of pytest, e.g. make test PYTEST_ARGS="-k scoring"
PYTEST_ARGS :=

SCRIPTS := $(wildcard .ci/run local/*.sh egs2/hra_asr/*.sh)

.PHONY: help venv run test test-slow soak lint compatibility docs clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*##/\1	/p' Makefile | expand -t 12

venv: $(STAMP)  ## set up .venv (done by the other targets on first use)

# Built again where the requirements changed or the folder was moved or damaged. What is
# imported is compiled then: to compile all that is installed takes a minute or two.
define install
	@if ! $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	    python=$$(bash local/find_python.sh); \
	    echo "Making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV); \
	fi
	@echo "Installing $(2) (2-7 minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	    --no-compile --editable '.[$(1)]'
	@touch $(RUNS) $@
	@echo "Installed in $(VENV)"
endef

# The recipe needs less than the tests do.
RUN_EXTRAS := lora,plots,whisper
ALL_EXTRAS := $(RUN_EXTRAS),adapt,align,demo,export,serve,test,dev
REQUIREMENTS := setup.cfg setup.py pyproject.toml local/find_python.sh
$(RUNS): $(REQUIREMENTS)
	$(call install,$(RUN_EXTRAS),ESPnet and PyTorch)
$(STAMP): $(REQUIREMENTS)
	$(call install,$(ALL_EXTRAS),ESPnet and PyTorch with what the tests need)

run: $(RUNS)  ## run the recipe; ARGS="--corpus mini_an4" gives it options
	@egs2/hra_asr/run.sh $(ARGS)

# One thread for each of two processes beats two threads: most tests are short.
test: $(STAMP)  ## run the quick tests; print the coverage and the ten slowest
	@OMP_NUM_THREADS=1 COVERAGE_CORE=sysmon $(BIN)/python -m pytest -m "not slow" \
	    -n 2 --dist loadfile --timeout 300 -q --durations 10 --cov --cov-report term \
	    $(PYTEST_ARGS)

test-slow: $(STAMP)  ## run the tests that train models
	@$(BIN)/python -m pytest -m slow --timeout 1800 -q $(PYTEST_ARGS)

soak: $(STAMP)  ## kill, fill, load and damage it for hours; ARGS="--only tasks --count 9"
	@$(BIN)/espnet-hra bench soak --results docs/reliability.tsv \
	    --page docs/reliability.md $(ARGS)

lint: $(STAMP)  ## check style, types, imports and docs
	@$(BIN)/ruff format --check --diff -q .
	@$(BIN)/ruff check -q .
	@for script in $(SCRIPTS); do bash -n "$$script"; done
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m mypy
	@$(BIN)/mkdocs build --strict --quiet --site-dir "$$(mktemp -d)"
	@echo "Style, types, imports and docs: fine"

compatibility: $(STAMP)  ## write docs/compatibility.md from what the tests show
	@$(BIN)/python -m pytest --collect-only -q -p no:cov \
	    --compatibility=docs/compatibility.md > /dev/null
	@echo docs/compatibility.md

docs: $(STAMP)  ## build the pages of docs/ as a site, in build/site
	@$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "build/site/index.html"

clean:  ## remove .venv and caches (data and experiments stay)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .coverage* .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
