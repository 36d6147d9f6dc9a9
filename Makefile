# Two commands: `make demo` shows the system at work, `make test` proves it. Both build .venv when it is not there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
MAKEFLAGS += --no-print-directory
export PYTHON

CHECKS := sync notebooks pages lint order wheel site-check extra

.PHONY: help env demo test check site bench save readme format export constraints $(CHECKS)

help: ## this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

env: ## build or refresh .venv (nothing to do when it is up to date)
	@.ci/env

demo: env ## the whole system on a small world of ads; results in demo/
	@.venv/bin/alignment-video demo --out demo

test: env ## every check that CI makes
	@$(PY) .ci/check.py

check: env ## the fast ones: sync, lint, order
	@$(PY) .ci/check.py sync lint order

sync: env ## 1. modules and README are what the notebooks give, notebooks are clean
notebooks: env ## 2. nbdev's tests in every notebook, with coverage
pages: env ## 3. every notebook in a real kernel, outputs unchanged
lint: env ## 4. ruff and mypy
order: env ## 5. modules import downward only, `import alignment_video` is light, README is current
wheel: env ## 6. the wheel, installed without development packages, runs the demo
site-check: env ## 7. the site, built with warnings as errors and opened in a browser
extra: env ## 8. tests/
$(CHECKS):
	@$(PY) .ci/check.py $@

site: env ## the documentation in _site/
	@$(PY) .ci/site_build.py

bench: env ## measurements, one JSON line each, kept in bench/results/latest.jsonl
	@$(PY) .ci/bench.py

save: env ## run notebooks and save their outputs: make save, or make save NB=nbs/00_core.ipynb
	@$(PY) .ci/pages.py --save $(NB)

export: env ## write the modules from the notebooks
	@.venv/bin/nbdev_export

readme: env ## write README.md from nbs/index.ipynb
	@$(PY) .ci/readme.py

format: env ## let ruff format notebooks and scripts
	@.venv/bin/ruff check --fix-only -q nbs tests bench .ci && .venv/bin/ruff format nbs tests bench .ci

constraints: env ## write constraints.txt from what .venv holds
	@$(PY) .ci/constraints.py
