# Two commands are enough on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
SHARED ?= ../shared/data
# Tests start many processes: without compiled files each would compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE
# Files of tests side by side, one thread each: half the time on two cores. In the order of tests/conftest.py: the slow ones first.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test fast lint bench reproduce experiments clean

demo: .venv/.installed
	$(BIN)/posttrain run recipes/quickstart.yaml

test: lint
	$(PYTEST)

fast: .venv/.installed-dev
	$(PYTEST) -m "not slow"

lint: .venv/.installed-dev
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python benchmarks/sft_speed.py

# Published numbers beside ours, from raw data that is not part of the project.
reproduce: .venv/.installed-langid
	$(BIN)/python benchmarks/reproduce.py $(SHARED)

# The textbook experiments in their small form, about four hours of one thread; killed, it goes on. Writes docs/experiments.
experiments: .venv/.installed
	$(BIN)/python benchmarks/experiments.py run

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (a few minutes the first time) ..."
	$(INSTALL) -e .
	touch $@

# IFEval checks the language of a reply
.venv/.installed-langid: .venv/.installed
	$(INSTALL) -e '.[langid]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(INSTALL) -e '.[dev]'
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk; } >/dev/null 2>&1 \
		|| echo "chromium can't be installed here: the tests of the board in a browser will be skipped"
	touch $@
