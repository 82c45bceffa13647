# Every target sets up .venv itself. Another Python: PYTHON=python3.12 make book
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(notdir $(PYTHON))
PORT ?= 8000

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A progress bar in an output would differ from run to run.
execute notebooks: export TQDM_DISABLE := 1
# Kernels run side by side, one a core; threads of their own would only get in each other's way.
execute notebooks: export OMP_NUM_THREADS := 1
execute notebooks lab: export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help book test serve lab execute bench lint notebooks tests unit clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

book: $(READY)  ## build the site into _build/html
	@rm -rf _build/html
	@$(BIN)/jupyter-book build book -W -n --keep-going --all -q --path-output .
	@$(BIN)/python book/_tools/pages.py

# The site is built anew because the browser tests would otherwise judge an old one.
test:  ## lint, run every notebook against its outputs, run every test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory book >/dev/null
	@$(MAKE) --no-print-directory notebooks
	@$(MAKE) --no-print-directory tests

serve: book  ## build the site and serve it on http://localhost:8000
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: $(READY)  ## open the book in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=book

execute: $(READY)  ## run the notebooks in place (one of them: make execute NB=nets/regression.ipynb)
	@$(BIN)/python book/_tools/execute.py $(NB)

bench: $(READY)  ## time bnnlib against torchbnn and a deterministic net
	@$(BIN)/python tests/bench.py

lint: $(READY)  ## ruff, mypy, codespell
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python book/_tools/spell.py

notebooks: $(READY)  ## run the notebooks and compare with their outputs
	@$(BIN)/pytest book -q --nbval --nbval-current-env --nbval-cell-timeout=300 -n auto --dist loadfile

tests: $(READY)  ## every test
	@$(BIN)/pytest tests -q -n auto

unit: $(READY)  ## the quick tests only
	@$(BIN)/pytest tests -q -n auto -m "not slow and not browser"

clean:  ## remove what was built (.venv stays)
	rm -rf _build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A .venv of another Python version is made anew; one of this version is only brought up to date.
$(READY): pyproject.toml constraints.txt tests/reference/no_deps.txt
	@echo "setting up $(VENV) with $(PYTHON); the first time takes some minutes"
	@v='import sys; print(sys.version_info[:2])'; \
	 test "$$($(BIN)/python -c "$$v" 2>/dev/null)" = "$$($(PYTHON) -c "$$v")" || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -qq -c constraints.txt -e ".[book,test]"
	@$(BIN)/pip install -qq --no-deps -c constraints.txt -r tests/reference/no_deps.txt
	@! $(BIN)/pip check | grep -v -e "^No broken requirements" -e "requires torchvision, which is not installed"
	@touch $@
