# Everything sets up what it needs, once. PYTHON names the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
ARGS   ?=

.PHONY: quickstart test setup lint bench docs lock oracles clean
.DEFAULT_GOAL := setup

quickstart: $(VENV)/.locked
	@$(BIN)/loom quickstart $(ARGS)

setup: $(VENV)/.locked

# The environment: the locked packages, torch as this machine's pip offers it, Loom itself (editable).
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Loom needs Python 3.11 to 3.13 and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python has no venv or pip: install python3-venv, or name another: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.locked: requirements.lock pyproject.toml $(VENV)/.made
	$(PIP) install --no-deps -r requirements.lock
	$(PIP) install 'torch>=2.9,<2.14'
	$(PIP) install --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock requirements-docs.lock $(VENV)/.locked
	$(PIP) install --no-deps -r requirements-dev.lock -r requirements-docs.lock
	@touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fast tests first: a mistake shows within seconds. Oracles are the systems Loom must agree with.
test: $(VENV)/.dev oracles
	$(BIN)/python -m pytest -q -m 'not slow' $(ARGS)
	$(BIN)/python -m pytest -q -m slow $(ARGS)

oracles: $(VENV)/.dev
	@$(BIN)/python tests/oracles/build.py

bench: $(VENV)/.dev oracles
	@for script in $(filter-out bench/summary.py,$(wildcard bench/*.py)); do $(BIN)/python $$script || exit 1; done
	@$(BIN)/python bench/summary.py

# The documentation as a site, in site/. Warnings are errors.
docs: $(VENV)/.locked requirements-docs.lock
	$(PIP) install --no-deps -r requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Resolve the locks anew. torch and what it drags in stay out: pip takes the build the machine offers.
lock:
	@test -x .peers/lock/bin/uv || { $(PYTHON) -m venv .peers/lock && .peers/lock/bin/pip -q install uv; }
	.peers/lock/bin/uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-package torch pyproject.toml -q | grep -vE '^(torch|triton|nvidia-|cuda-)' > requirements.lock
	.peers/lock/bin/uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-package torch pyproject.toml --extra dev -c requirements.lock -q \
	  | grep -vE '^(torch|triton|nvidia-|cuda-)' > requirements-dev.lock
	.peers/lock/bin/uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-package torch pyproject.toml --extra docs -c requirements.lock -c requirements-dev.lock -q \
	  | grep -vE '^(torch|triton|nvidia-|cuda-)' | grep -vxFf requirements.lock > requirements-docs.lock

clean:
	rm -rf $(VENV) .peers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
