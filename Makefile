# Two commands matter: `make book` and `make test`. `make` lists the others.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
PROFILE ?= default
FOLDER ?= notebooks
TESTS ?= tests
ARGS ?=
TIER ?= 1
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help book test smoke full lab outputs mutants proof headline gpu lint clean fonts lock setup
.PHONY: pdf release coverage sizes ae manifest check unit nbval pages

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv from the locks, and system packages where root on Debian

$(READY): requirements.lock requirements-nodeps.lock pyproject.toml scripts/install.sh
	@sh scripts/system_packages.sh
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sh scripts/install.sh $(BIN)/pip
	@touch $@

book: $(READY) ## execute every chapter and render the book (PROFILE=default)
	$(BIN)/thesis run --profile $(PROFILE)
	$(BIN)/thesis book --profile $(PROFILE)

pdf: $(READY) ## the book with its PDF, for which Chromium must be there (PROFILE=default)
	$(BIN)/thesis run --profile $(PROFILE)
	$(BIN)/thesis book --profile $(PROFILE) --pdf

smoke: $(READY) ## execute all chapters at the smoke profile
	$(BIN)/thesis run --profile smoke

full: $(READY) ## the published evaluation: the book, then the grids of chapters 4 and 6
	$(MAKE) book PROFILE=full
	$(BIN)/thesis sweep 4 data/grids/04_evaluation.yml
	$(BIN)/thesis sweep 6 data/grids/06_evaluation.yml --workers 1

# A stage of `make test`: its name and time go to the line that is printed at the end.
TIMES := build/stages
stage = @began=$$(date +%s); $(MAKE) --no-print-directory $(1) || exit; \
  mkdir -p build; echo "$(1) $$(($$(date +%s) - began)) s" | tee -a $(TIMES)
FAST := $(if $(SLOW),, and not slow)
WORKERS := -n logical --maxprocesses 4

test: $(READY) ## in minutes: lint, types, fast tests, nbval, the strict book, a browser
	@rm -f $(TIMES)
	$(call stage,lint)
	$(call stage,unit)
	$(call stage,nbval)
	$(call stage,pages)
	@paste -s -d ';' $(TIMES) | sed 's/;/ · /g'

check: ## everything that is promised, slow tests, a sweep and all browser tests included
	$(MAKE) test SLOW=yes
	$(BIN)/thesis sweep 4 data/grids/example.yml --no-resume

unit: $(READY) ## the tests that need no browser (SLOW=yes: all)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m 'not browser and not proof and not gpu$(FAST)'

nbval: smoke ## compare what chapters printed at the smoke profile with what they store
	$(BIN)/pytest -q -p thesis_book.execute.replay --executed build/chapters/smoke \
	  --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks

pages: smoke ## build the book strictly and look at it in a browser (SLOW=yes: all of it)
	$(BIN)/thesis book --profile smoke
	$(BIN)/pytest $(WORKERS) --dist load -m 'browser$(FAST)' tests/browser

lint: $(READY) ## ruff, pyright, spelling, import contracts, size limits
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/sizes.py
	$(BIN)/codespell -D - -D scripts/words.txt *.md data/README.md benchmarks binder book examples notebooks scripts src

proof: $(READY) ## laws that take minutes
	$(BIN)/pytest -m proof

headline: $(READY) ## a 65B geometry in 8 GiB and in 4: says disk and time first (ARGS=)
	$(BIN)/python benchmarks/headline.py $(ARGS)

gpu: ## needs a CUDA device: its checks, a 65B geometry in 8 GiB, chapter 6 (PROFILE=default)
	@sh scripts/require_gpu.sh
	@$(MAKE) --no-print-directory $(READY)
	@sh scripts/require_gpu.sh $(BIN)/python
	$(BIN)/pytest -m gpu
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/thesis run 6 --profile $(PROFILE)

release: $(READY) ## before a release: the default book and its claims, the wheel
	$(MAKE) book PROFILE=default
	$(BIN)/thesis claims --profile default
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/pytest tests/project/test_wheel.py tests/project/test_packaging.py

# Whole chapters would count lines that no law asks about.
coverage: $(READY) ## share of lines that the laws execute, by room (TESTS=tests)
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -q -n logical --maxprocesses 4 \
	  --dist loadfile --no-loadscope-reorder --durations=60 \
	  -m 'not browser and not proof and not gpu' -k 'not random_parameters' $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --show-missing
	@for room in $$(find src -name __init__.py | sort | xargs -n1 dirname); do \
	  printf '%-40s %4s %%\n' $$room \
	    $$($(BIN)/coverage report --format=total --include="$$room/*"); done

ae: $(READY) ## artifact evaluation, TIER=1 (minutes), 2 (the published book), 3 (hardware)
	sh scripts/evaluate.sh $(TIER)

manifest: ## every file of this commit with its hash, for an archive
	@git diff --quiet HEAD || { echo "files differ from the commit: commit them first"; exit 1; }
	@mkdir -p build
	git ls-files -z | xargs -0 sha256sum > build/MANIFEST.sha256

sizes: $(READY) ## lines of each part with their limits, and words a sentence of each page
	$(BIN)/python scripts/sizes.py
	$(BIN)/pytest -qs -k short_sentences tests/thesis/test_prose.py | grep -o '[^. ][^ ]* .*sentence'

mutants: $(READY) ## break one line at a time; each must turn a check red
	$(BIN)/python scripts/mutate.py

outputs: $(READY) ## execute notebooks at smoke values; store what nbval compares
	$(BIN)/thesis outputs

# JupyterLab would ask the network for news and extensions: its defaults here do not.
lab: $(READY) ## open the chapters, or a copy of them, in JupyterLab (FOLDER=notebooks ARGS=)
	JUPYTER_CONFIG_PATH="$(CURDIR)/scripts/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	  $(BIN)/jupyter lab --notebook-dir="$(FOLDER)" --LabApp.extension_manager=readonly $(ARGS)

fonts: $(READY) ## collect the characters of the book again (needs npm, fonts-noto-cjk)
	$(BIN)/python scripts/fonts.py

lock: ## resolve the locks again (needs uv)
	sh scripts/lock.sh

clean: ## remove the environment, results and caches
	rm -rf .venv build .cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis \
	  .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
