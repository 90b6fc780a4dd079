# Each target first makes .venv from the lock when it is missing or older than the lock.
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin

.PHONY: reproduce test lint lab
reproduce: .venv/installed  ## every notebook, table and figure of a profile
	$(BIN)/samsg reproduce --profile $(PROFILE)

test: .venv/installed  ## unit tests, parity tests, and the notebooks through nbval
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lab: .venv/installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

.venv/installed: requirements.lock pyproject.toml
	@echo 'Installing the pinned environment into .venv: a few minutes, about 6 GB.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@
