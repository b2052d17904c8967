# make demo: pretrain, evaluate and report on the embedded images.  make test: all tests.
VENV ?= .venv
PY := $(VENV)/bin/python
# Bytecode is written at a first import, of what is imported: compiling all of it is two fifths of an install's CPU time
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PIP := $(PY) $(INSTALL) -c constraints.txt

.PHONY: install demo test long parity lint bench docs notebook dist oldest clean

install: $(VENV)/.core

$(VENV)/.core: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(VENV)/.core
	$(VENV)/bin/jepakit demo --out runs/demo --overwrite

test: $(VENV)/.dev
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

long: $(VENV)/.dev
	$(PY) -m pytest -m long

# Beside timm, which brings torchvision: in an environment of its own (a torchvision of another build breaks transformers)
parity:
	python3 -m venv $(VENV)-parity
	$(VENV)-parity/bin/python $(INSTALL) -c constraints.txt -e ".[dev,parity]"
	$(VENV)-parity/bin/python -m pytest tests/artifacts/test_export_timm.py

# The pages of docs/ as a site: docs/_build/html/index.html, to be opened as a file
docs: $(VENV)/.docs
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all --builder html docs docs/_build/html

$(VENV)/.docs: $(VENV)/.core
	$(PIP) -e ".[docs]"
	@touch $@

# Runs docs/tour.ipynb and writes its outputs into it: minutes
notebook: $(VENV)/.core
	$(PIP) -e ".[notebook]"
	$(PY) scripts/notebook.py

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# In a smoke size; `make -j 2 bench` runs two at a time.
SMOKE := $(addprefix smoke-,quality collapse data fuzz step gpu growth embed report)
.PHONY: $(SMOKE) studies house
bench: house studies $(SMOKE)

$(SMOKE): smoke-%: $(VENV)/.dev
	$(PY) benchmarks/$*.py --smoke

studies: $(VENV)/.dev
	$(PY) benchmarks/studies.py

house: $(VENV)/.dev
	$(PY) scripts/house.py

# A wheel and an sdist, the wheel tried in an empty environment: no checkout, HOME and PATH of its own
dist: $(VENV)/.dev
	$(PY) -m build --outdir dist .
	$(PY) scripts/try_wheel.py dist

# The tests beside the oldest packages that pyproject.toml allows (of torch the present one, unless TORCH names another)
oldest:
	python3 -m venv $(VENV)-oldest
	python3 scripts/oldest.py $(TORCH) > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python $(INSTALL) -c $(VENV)-oldest/constraints.txt -e ".[dev,docs]"
	$(VENV)-oldest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV)
