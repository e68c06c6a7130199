# Two commands to start with: `make quickstart`, then `make test`.
# They need only Python 3.11 to 3.13, on Linux x86-64 or Apple silicon.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install quickstart test slow long lint format lock docs clean

help:
	@echo "make quickstart   install, prepare a corpus, pre-train and compare two small BERTs (5 to 7 minutes, after one to five minutes to install)"
	@echo "make test         install what tests need, check style and types, run the tests that are not slow"
	@echo "make slow         run the slow tests"
	@echo "make long         run more cases of the slow tests (an hour): before a release"
	@echo "make docs         build docs/ as a site in docs/_build"
	@echo "make format       run ruff format and ruff check --fix"
	@echo "make lock         update requirements*.txt from pyproject.toml"
	@echo "make clean        remove .venv, runs/ and caches"

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $$($(PYTHON) --version) does not fit: bert_fast needs Python 3.11 to 3.13 (make PYTHON=python3.11 ...)"; exit 1; }
	@echo "Installing the packages of requirements.txt into .venv (about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	@echo "Installing the packages of requirements-test.txt into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# The TPU compiler, for the tests of `plan`. It gets a folder of its own, because JAX tries to use libtpu wherever it can import it.
.venv/installed-libtpu: requirements-tpu.txt .venv/installed-test
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		echo "Installing the TPU compiler into .venv/libtpu ..."; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu $$(grep '^libtpu==' $<); \
	fi
	@touch $@

install: .venv/installed

quickstart: .venv/installed
	@$(BIN)/python -m bert_fast.quickstart

lint: .venv/installed-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow and not long"

slow: .venv/installed-libtpu
	JAX_PLATFORMS=cpu PYTHONPATH=.venv/libtpu $(BIN)/python -m pytest -n 2 --dist loadfile -q -m slow

long: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist load -q -m long

# The requirements files are for the oldest supported Python. Other versions install from pyproject.toml: pip install .
# Existing pins that still fit are kept. `make lock UPGRADE=--upgrade` takes the newest versions.
LOCK = .venv/lock/bin/uv pip compile pyproject.toml --python-version 3.11 --quiet --no-annotate $(UPGRADE) \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: .venv/installed
	@$(PYTHON) -m venv .venv/lock
	@.venv/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --output-file requirements.txt
	$(LOCK) --constraint requirements.txt --extra test --output-file requirements-test.txt
	@# these packages come with torch: its builds for NVIDIA GPUs require them
	@sed -i.old -E '/^(nvidia|cuda|triton)/d' requirements-test.txt && rm requirements-test.txt.old
	$(LOCK) --constraint requirements.txt --extra tpu --output-file requirements-tpu.txt
	$(LOCK) --constraint requirements.txt --extra gpu --output-file requirements-gpu.txt

docs: .venv/installed-test
	$(BIN)/python -m sphinx -c docs -W -q . docs/_build

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis
