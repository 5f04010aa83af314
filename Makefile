# The index of commands. Each target sets up what it needs in $(VENV); nothing is installed twice.
VENV ?= .venv
SYSTEM_PYTHON ?= python3
PYTHON := $(VENV)/bin/python
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: demo test gpu lint check fuzz lab notebooks strip studies bench docs wheel clean

demo: $(VENV)/.installed  ## train a baseline and ToCo on toy scenes, execute their notebooks, write one report
	$(PYTHON) -m toco_lab demo

# a worker for each core, four at most: each needs about 1 GB, and tests start notebooks and browsers as well
PYTEST := $(PYTHON) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test  ## the whole suite, notebooks included
	$(PYTEST) --durations=10

gpu: $(VENV)/.installed-test  ## on a machine with a GPU: the tests that need one, then what steps and inference cost
	TOCO_TEST_GPU=1 $(PYTHON) -m pytest -m gpu
	$(PYTHON) -m benchmarks gpu_step/vit_b gpu_step/vit_s gpu_inference

lint: $(VENV)/.installed-test  ## formatting, lint, types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

check: lint  ## what to run before a commit: lint and the quick tests, which also check who imports whom
	$(PYTEST) -m "not slow and not browser"

fuzz: $(VENV)/.installed-test  ## spoil inputs of every kind for three minutes; `make fuzz SECONDS=600 SEED=1`
	$(PYTHON) -m tests.fuzz --seconds $(or $(SECONDS),180) $(if $(SEED),--seed $(SEED))

lab: $(VENV)/.installed  ## Jupyter on this machine only; the token is in the address it prints
	$(PYTHON) -m jupyter lab --ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb

notebooks: $(VENV)/.installed  ## execute every notebook on the smoke preset
	$(PYTHON) -m toco_lab run $(NOTEBOOKS) --parameters preset=smoke run_dir=results/notebooks

strip: $(VENV)/.installed  ## take outputs and stray metadata out of the notebooks
	$(PYTHON) -m toco_lab.sweeps.strip $(NOTEBOOKS)

studies: $(VENV)/.installed  ## the studies of results/studies with their questions; `make studies NAME=toy_table` makes one again
	$(PYTHON) -m toco_lab study $(NAME)

bench: $(VENV)/.installed  ## every benchmark at modest settings, then the table of docs/speed.md; leave the machine alone
	$(PYTHON) -m benchmarks
	$(PYTHON) -m benchmarks.summary

docs: $(VENV)/.installed-docs  ## the documentation as a site that opens offline; notebooks run on the smoke preset
	$(PYTHON) docs/prepare.py
	$(PYTHON) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

wheel: $(VENV)/.installed-test  ## dist/toco_lab-*.whl, to be installed anywhere: code, notebooks, toy weights, studies
	$(PYTHON) -m build --no-isolation

clean:  ## caches and the results of `demo` and `notebooks`; other runs and $(VENV) stay
	rm -rf build dist *.egg-info .ruff_cache results/demo results/notebooks \
		docs/_build docs/api docs/generated docs/notebooks docs/_static/plotly.min.js
	find toco_lab tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# uv where there is one, or can be had; plain pip otherwise
define install
	@if command -v uv >/dev/null; then uv pip install --python $(PYTHON) -e '$(1)'; \
	elif [ -x $(VENV)/bin/uv ] || $(PYTHON) -m pip install --quiet uv; then $(VENV)/bin/uv pip install --python $(PYTHON) -e '$(1)'; \
	else $(PYTHON) -m pip install -e '$(1)'; fi
	@touch $@
endef

$(PYTHON):
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "error: Python 3.11 or newer is needed, $(SYSTEM_PYTHON) is not; try make SYSTEM_PYTHON=python3.12" >&2; exit 1; }
	@$(SYSTEM_PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "error: $(SYSTEM_PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(PYTHON)
	$(call install,.)

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(call install,.[docs])

# after the plain installation, so that `make -j demo test` never runs two installers at once
$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	$(call install,.[test])
