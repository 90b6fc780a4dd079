# Each target first makes .venv from the lock when it is missing or older than the lock.
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin

export GOMP_SPINCOUNT ?= 10000
# With it, every notebook's kernel would compile PyTorch's modules again: 15 s each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce studies test coverage lint lab notebooks bench docs
reproduce: .venv/installed  ## every notebook, table and figure of a profile
	$(BIN)/samsg reproduce --profile $(PROFILE)

studies: .venv/installed  ## one short fold of every study on the human speech in data/ or ../shared
	$(BIN)/python tools/claim.py --small

test: .venv/installed  ## unit tests, parity tests, and the notebooks through nbval
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q

coverage: .venv/installed  ## the tests again, and the lines and branches of samsg/ that none of them runs
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q --cov

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lab: .venv/installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab $(ARGS) notebooks

docs: .venv/installed  ## the site: README, notebooks as committed, documents, public names; open build/site/index.html
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/site

DEVICE ?= cpu
bench: .venv/installed  ## speed and memory beside what people would use instead; docs/performance.md
	$(BIN)/python -m benchmarks --device $(DEVICE)

notebooks: .venv/installed  ## run the notebooks where they are, so that their outputs are up to date
	$(BIN)/python tools/run_notebooks.py notebooks/*.ipynb

# uv installs the lock several times faster than pip; where it cannot be had, pip installs the same lock.
.venv/installed: requirements.lock pyproject.toml
	@echo 'Installing the pinned packages into .venv (6 GB).'
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  (echo 'Python 3.11, 3.12 or 3.13 is needed; make PYTHON=python3.12, for example.'; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.9 && $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
