# Every target does its own set-up: python3 with its venv module, and make, are all that is needed.
PYTHON ?= python3
VENV ?= .venv
# What is installed: everything, unless some recipes need less (`make run RECIPES="00 01"
# EXTRAS=notebooks`; recipes.toml names a recipe's extras).
EXTRAS ?= notebooks,llamaindex,measure,tables,agent,finetune,serve,kubernetes
# Recipes to run (`make run RECIPES="01 02"`), and where the endpoints are: local, hosted, self-hosted.
RECIPES ?=
ENDPOINTS ?=
# Which local models answer: default, better, small (`make run MODELS=small`).
MODELS ?=
ifneq ($(MODELS),)
export COOKBOOK_MODELS := $(MODELS)
endif
# First of the local endpoints' ports (`make serve PORT_BASE=9000`); 8000 when it is not set.
PORT_BASE ?=
PORTS = $(if $(PORT_BASE),--port-base $(PORT_BASE))
# Options for JupyterLab (`make lab LAB_ARGS="--no-browser --allow-root"`).
LAB_ARGS ?=
# Arguments for pytest (`make test PYTEST_ARGS="-k rerank"`).
PYTEST_ARGS ?=

# With arguments of one's own, a phase may have none of the tests that they name.
NONE = $(if $(PYTEST_ARGS),|| test $$? -eq 5)
# Options for the benchmarks' page (`make bench BENCH_ARGS=--quick`).
BENCH_ARGS ?=

# A folder for tools/offline_engine.sh, where no registry of images is reached (`make compose-test
# ENGINE=FOLDER PYTHON_PREFIX=FOLDER`).
ENGINE ?=

# Whether tests marked `long` run as well.
LONG ?=

BIN := $(VENV)/bin
CODE := utils tests tools benchmarks
MARKED = -m "$(1)$(if $(LONG),, and not long)"
PYTEST = $(BIN)/python -m pytest --durations=15
# With loopback as the only network: it fails when anything asks another machine. Not where the
# tests of the recipes go live.
SILENT = $(if $(filter hosted self-hosted,$(COOKBOOK_ENDPOINTS)),,$(PYTHON) tools/silent.py)
COOKBOOK := $(BIN)/nim-cookbook
NEED_PYTHON = command -v $(PYTHON) >/dev/null || { echo "Error: $(PYTHON) was not found: install Python 3.11, 3.12 or 3.13, or name it with \`make PYTHON=/path/to/python ...\`." >&2; exit 2; }
BOOTSTRAP = @$(NEED_PYTHON); $(PYTHON) tools/bootstrap.py --venv $(VENV)

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-code test-recipes recipes-together recipes-alone test-network weights coverage lint crds lab serve fetch notebooks pdfs screenshot pipelines tables stamp site bench images compose-test constraints wheel clean setup setup-dev

help: ## Show this list
	@echo "make TARGET, with TARGET one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

# Both install what is missing and do nothing when the environment is up to date.
setup:
	$(BOOTSTRAP) --extras $(EXTRAS)

setup-dev:
	$(BOOTSTRAP) --extras $(EXTRAS),site,dev

run: setup ## Execute the recipes from beginning to end (RECIPES="01 02", ENDPOINTS=hosted)
	@$(COOKBOOK) run $(RECIPES) $(if $(ENDPOINTS),--endpoints $(ENDPOINTS)) $(PORTS)

test: setup-dev ## What every commit must pass: lint, tests, each recipe once
	@$(MAKE) --no-print-directory --keep-going lint test-code test-recipes test-network

test-all: setup-dev ## The long run: kills, trainings, every notebook alone, every lying server
	@$(MAKE) --no-print-directory --keep-going lint test-code test-recipes test-network compose-test LONG=1

# A few wait while others compute: three processes for two cores.
test-code: setup-dev weights ## Unit tests, and contract tests with the vendors' own clients
	$(SILENT) $(PYTEST) tests/unit tests/contract -n 3 --dist loadgroup $(call MARKED,not alone and not network and not container) $(PYTEST_ARGS) $(NONE)

# Both, also when the first fails: `make test` tells all failures.
test-recipes: setup-dev weights ## Each recipe, executed with nbmake
	@$(MAKE) --no-print-directory --keep-going recipes-together recipes-alone

recipes-together:
	$(SILENT) $(PYTEST) tests/notebooks -n 2 --dist loadgroup $(call MARKED,not alone and not network) $(PYTEST_ARGS) $(NONE)

recipes-alone:
	$(SILENT) $(PYTEST) tests/notebooks $(call MARKED,alone and not network) $(PYTEST_ARGS) $(NONE)

# Before the network goes.
weights: setup-dev
	@$(COOKBOOK) fetch
	@$(COOKBOOK) fetch --models small

test-network: setup-dev ## Tests that install packages or start a browser
	$(PYTEST) tests/contract tests/notebooks -n 2 --dist loadgroup $(call MARKED,network) $(PYTEST_ARGS) $(NONE)

lint: setup-dev ## Check style and types (the rules for notebooks are tests)
	$(BIN)/ruff check $(CODE) notebooks
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

coverage: setup-dev ## Which lines of utils/ the unit and contract tests execute
	$(BIN)/coverage erase
	$(PYTEST) tests/unit tests/contract -n 3 --dist loadgroup $(call MARKED,not alone) --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/coverage combine --append --quiet || true # the servers write theirs after pytest has ended
	$(BIN)/coverage report

crds: ## Fetch the definitions of KEDA's and the NIM Operator's objects, to check the chart against
	@$(NEED_PYTHON); $(PYTHON) tools/fetch_crds.py

lab: setup ## Open JupyterLab with the local endpoints running (LAB_ARGS=--no-browser)
	@$(COOKBOOK) lab $(PORTS) $(LAB_ARGS)

serve: setup ## Run the local endpoints in the foreground (PORT_BASE=9000)
	@$(COOKBOOK) serve $(PORTS)

fetch: setup ## Fetch and check the model weights, for working offline later
	@$(COOKBOOK) fetch

notebooks: setup ## Execute the recipes and store their outputs in notebooks/
	@$(COOKBOOK) run $(RECIPES) --store $(PORTS)

pdfs: setup-dev ## Build the company's PDFs from their Markdown
	@$(BIN)/python tools/make_pdfs.py
	@$(BIN)/python tools/make_pdfs.py --folder data/tables

screenshot: setup-dev ## Drive the chat page in Chromium and keep its picture for recipe 11
	@COOKBOOK_SCREENSHOT=$(CURDIR)/data/serving/chat-page.png $(BIN)/python -m pytest tests/contract/test_chat_page.py

pipelines: setup ## Write the served pipelines to deploy/pipelines
	@$(BIN)/python -m rag_service.pipelines

tables: setup ## Write the tables and the figure of README.md and docs/hosted-catalog.md
	@$(BIN)/python tools/tables.py

site: ## Build the web pages from the stored outputs, into build/site/html
	$(BOOTSTRAP) --extras site
	@$(BIN)/python tools/build_site.py

stamp: setup ## Write the repository's address (pyproject.toml) into badges and set-up cells
	@$(BIN)/python tools/stamp.py

bench: ## Write one page on load, speed and growth (BENCH_ARGS=--quick, --full)
	$(BOOTSTRAP) --extras $(EXTRAS),bench
	@$(if $(PORT_BASE),COOKBOOK_PORT_BASE=$(PORT_BASE)) $(BIN)/python benchmarks/page.py $(BENCH_ARGS)

images: ## Build the three container images
	@for target in service chat local; do \
	  docker build --network host -f deploy/Dockerfile --target $$target -t nim-rag-cookbook/$$target:0.1.0 . || exit 1; done

compose-test: setup-dev ## Build the images, bring Compose up, ask, upload, scale, restart, stop (needs Docker)
	$(if $(ENGINE),trap 'kill $$(cat $(ENGINE)/run/pid)' EXIT; tools/offline_engine.sh $(ENGINE) && DOCKER_HOST=unix://$(abspath $(ENGINE))/run/sock) \
	  $(PYTEST) tests/contract/test_containers.py -m container $(PYTEST_ARGS) $(NONE)

constraints: ## Pin constraints.txt anew from a fresh environment
	@$(NEED_PYTHON); $(PYTHON) tools/make_constraints.py

wheel: setup-dev ## Build the wheel, with the recipes' data in it, into dist/
	@$(BIN)/python -m hatchling build -t wheel -d dist

clean: ## Remove the environment and everything that was built or executed
	rm -rf $(VENV) $(VENV).lock dist build executed .coverage .coverage.* .pytest_cache .ruff_cache .mypy_cache
	find utils tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
