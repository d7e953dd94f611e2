# Everything from a fresh machine with Python >= 3.10 and make. Each target does its own set-up once.

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# In a container one is root, and JupyterLab refuses to start for root unless it is told.
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
LESSONS := $(wildcard lessons/*.ipynb)

.PHONY: demo test test-browser test-peers bench lab lessons claims lint clean

demo: .venv/installed
	$(BIN)/qkit compare bookworm-14m --out out

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -m "not browser and not peers"
	$(BIN)/python -m pytest --nbval --nbval-cell-timeout=300 $(LESSONS)

# Debian's chromium; elsewhere set CHROMIUM to a Chrome or Chromium.
test-browser: .venv/installed-browser
	command -v chromium > /dev/null || test -n "$(CHROMIUM)" || (apt-get update -qq && apt-get install -y -qq chromium)
	$(BIN)/python -m pytest -m browser -s

test-peers: .venv/installed-peers
	$(BIN)/python -m pytest -m peers

# Layers and models beside other libraries, on a machine that does nothing else; a quarter of an hour.
bench: .venv/installed-peers
	$(BIN)/qkit bench cpu --out out
	$(BIN)/qkit bench model --out out

lab: .venv/installed-lab
	$(BIN)/python -m jupyterlab lessons $(ALLOW_ROOT)

# Run the lessons again and store what they print; no widget state (it blanks the page for readers without a kernel).
lessons: .venv/installed-lab
	$(BIN)/python -m jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.store_widget_state=False \
		--ExecutePreprocessor.record_timing=False $(LESSONS)
	$(BIN)/python tests/support/claims.py

# The ledger of claims, lessons/claims.md, from the cells' metadata.
claims: .venv/created
	$(BIN)/python tests/support/claims.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

.venv/installed-%: .venv/created pyproject.toml constraints.txt
	$(INSTALL) --editable ".[$*]"
	touch $@ .venv/installed

clean:
	rm -rf .venv out build *.egg-info
