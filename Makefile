# Two set-up commands for people: `make demo` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

LOWEST := .venv-lowest

.PHONY: demo test test-lowest install lint types suite zoo coverage map site recipe-page format clean

demo: $(VENV)/.installed
	$(BIN)/slt-compress search lenet-300-100 --init random --dataset digits --target-sparsity 0.9
	$(BIN)/slt-compress report

test: $(VENV)/.installed-dev lint types suite

install: $(VENV)/.installed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

suite: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

# The suite with the lowest version that pyproject.toml allows of every dependency.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2

zoo: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m zoo tests/zoo

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m tests.zoo.pipeline zoo-pipeline.jsonl
	$(BIN)/python -m tests.zoo.coverage zoo-plans.jsonl zoo-pipeline.jsonl

map: $(VENV)/.installed-dev
	$(BIN)/python -m tests.house docs/house.svg

# The site of docs/ in site/, every link checked.
site: $(VENV)/.installed
	$(BIN)/pip install -q -e '.[docs]'
	$(BIN)/mkdocs build --strict

recipe-page: $(VENV)/.installed-dev
	$(BIN)/python -m tests.recipe_page > docs/recipes.md

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slt-compress needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install -e '.[dev]'
	touch $@ $(VENV)/.installed

$(LOWEST)/.installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install -c $(LOWEST)/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis
