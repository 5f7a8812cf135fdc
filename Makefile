# Everything runs in an environment of its own, .venv, which the first command makes.
# PYTHON=python3.12 chooses the interpreter (3.11 or newer); nothing else is assumed.

PYTHON ?= python3
MIN_FREE_GB ?= 8
PYTEST_ARGS ?=
BENCH_ARGS ?=
DOCS_ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
LOG := $(VENV)/install.log

# A stray PYTHONPATH would mix other packages (another `inference`, say) into the environment.
unexport PYTHONPATH
.DEFAULT_GOAL := help
.PHONY: help demo test test-all browser bench docs lint format setup clean rebuild

# Runs under any Python, however old, so that what is missing is said before anything is downloaded.
define PREFLIGHT
import sys
chosen, free_wanted = sys.argv[1], float(sys.argv[2])
if sys.version_info < (3, 11):
    sys.exit("pyro-vae needs Python 3.11 or newer, but %s is %d.%d: try `make PYTHON=python3.12`." % ((chosen,) + sys.version_info[:2]))
try:
    import ensurepip, venv
except ImportError:
    package = "python3-venv" if chosen == "python3" else "python%d.%d-venv" % sys.version_info[:2]
    sys.exit("%s has no venv module; on Debian or Ubuntu type: apt install %s" % (chosen, package))
import shutil
free = shutil.disk_usage(".").free / 1e9
if free < free_wanted:
    sys.exit("pyro-vae needs %g GB of free disk to install (5.5 GB stay in use), but this folder's disk has %.1f GB: free some, or move this folder." % (free_wanted, free))
endef
export PREFLIGHT

# Whether .venv is fit for use: it runs, was made in this very folder (scripts inside hold its path), and,
# where PYTHON was asked for by name, was made by that Python. (Exported variables do not reach $(shell) in older makes.)
WHICH := import sys; print(sys.base_prefix + " " + sys.version.split()[0])
FIT := import sys; sys.exit(open(sys.argv[1]).read() != sys.argv[2] or sys.argv[3] not in ("", sys.base_prefix + " " + sys.version.split()[0]))

ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
  ifneq ($(origin PYTHON),file)
    ASKED := $(shell '$(PYTHON)' -c '$(WHICH)' 2>/dev/null || echo none)
  endif
  ifneq ($(shell $(BIN)/python -c '$(FIT)' $(STAMP) '$(CURDIR)' '$(ASKED)' 2>/dev/null && echo fit),fit)
    REBUILD := rebuild
  endif
endif

help:
	@echo 'make demo      fit a VAE with and without amortization, measure the gaps (3 minutes)'
	@echo 'make test      all tests but the slow ones (under 20 minutes)'
	@echo 'make test-all  the slow tests too'
	@echo 'make browser   look at the reports in Chromium (on Debian: apt-get install chromium chromium-driver)'
	@echo 'make bench     time training, the E-step and annealing beside other ways, into runs/speed (BENCH_ARGS="--only estep")'
	@echo 'make docs      build the documentation and run its notebooks, into docs/_build/html (2 minutes)'
	@echo 'make lint      ruff, mypy and import-linter'
	@echo 'make format    let ruff format the code'
	@echo 'make setup     only make the environment, which the others do too (5.5 GB, 2 minutes)'
	@echo 'make clean     remove the environment and all caches'
	@echo 'PYTHON=python3.12 chooses the interpreter; PYTEST_ARGS="-k data" is handed to pytest; JOBS=4 tests in four processes'

$(STAMP): pyproject.toml $(REBUILD)
	@command -v '$(PYTHON)' >/dev/null || { echo 'pyro-vae needs Python 3.11 or newer, but there is no $(PYTHON): install one, or try `make PYTHON=/path/to/python3`.' >&2; exit 1; }
ifneq ($(REBUILD),)
	@'$(PYTHON)' -c "$$PREFLIGHT" '$(PYTHON)' '$(MIN_FREE_GB)'
	@echo 'Installing into $(VENV): 5.5 GB, about 2 minutes on a fast network (to watch: tail -f $(LOG)).' >&2
	@rm -rf $(VENV)
	@'$(PYTHON)' -m venv $(VENV)
endif
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]' >$(LOG) 2>&1 </dev/null \
		|| { tail -n 20 $(LOG) >&2; echo 'Installing failed: the lines above are the end of $(LOG).' >&2; exit 1; }
	@printf %s '$(CURDIR)' > $@

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/pyro-vae demo

test: $(STAMP)
	@$(BIN)/python -m pytest -m 'not slow and not browser' -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-all: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

browser: $(STAMP)
	@$(BIN)/python -m pytest -m browser tests $(PYTEST_ARGS)

bench: $(STAMP)
	@$(BIN)/python benchmarks/speed.py --out runs/speed $(BENCH_ARGS) >/dev/null

# Sphinx and a notebook kernel, for those who build the documentation alone.
$(DOCS_STAMP): $(STAMP)
	@echo 'Installing Sphinx and MyST-NB into $(VENV).' >&2
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[docs]' >>$(LOG) 2>&1 </dev/null \
		|| { tail -n 20 $(LOG) >&2; echo 'Installing failed: the lines above are the end of $(LOG).' >&2; exit 1; }
	@touch $@

docs: $(DOCS_STAMP)
	@$(BIN)/python -m sphinx -W --keep-going -q --fresh-env -j $(JOBS) -b html $(DOCS_ARGS) docs docs/_build/html
	@echo 'Built: docs/_build/html/index.html'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist docs/_build
	find inference pyro_vae tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
