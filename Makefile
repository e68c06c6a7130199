# The two commands for a newcomer: `make quickstart`, then `make test`.
# Nothing else is needed but Python 3.11 or newer, on Linux x86-64 or Apple silicon.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install quickstart test slow lint format lock clean

help:
	@echo "make quickstart   install, prepare a corpus, pre-train a small BERT for two minutes, try it (3 minutes)"
	@echo "make test         install what tests need, check style and types, run the tests that are not slow"
	@echo "make slow         the slow tests"
	@echo "make format       ruff format and the fixes of ruff check"
	@echo "make lock         resolve requirements*.txt from pyproject.toml"
	@echo "make clean        remove .venv, runs/ and caches"

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: bert_fast needs Python 3.11 or newer (make PYTHON=python3.11 ...)"; exit 1; }
	@echo "Installing the packages of requirements.txt into .venv (about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	@echo "Installing the packages of requirements-test.txt into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# The TPU compiler, for the tests of `plan`: beside the environment, since JAX talks of it wherever it finds it.
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
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

slow: .venv/installed-libtpu
	JAX_PLATFORMS=cpu PYTHONPATH=.venv/libtpu $(BIN)/python -m pytest -n 2 --dist loadfile -q -m slow

# For the oldest Python that is supported. Other versions install from pyproject.toml: pip install .
# Keeps what is pinned already and fits; `make lock UPGRADE=--upgrade` takes the newest.
LOCK = .venv/lock/bin/uv pip compile pyproject.toml --python-version 3.11 --quiet --no-annotate $(UPGRADE) \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: .venv/installed
	@$(PYTHON) -m venv .venv/lock
	@.venv/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --output-file requirements.txt
	$(LOCK) --constraint requirements.txt --extra test --output-file requirements-test.txt
	@# torch asks for these by itself, where it is built for NVIDIA GPUs
	@sed -i.old -E '/^(nvidia|cuda|triton)/d' requirements-test.txt && rm requirements-test.txt.old
	$(LOCK) --constraint requirements.txt --extra tpu --output-file requirements-tpu.txt
	$(LOCK) --constraint requirements.txt --extra gpu --output-file requirements-gpu.txt

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis
