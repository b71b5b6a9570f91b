# make quickstart   from nothing to a tuned model with results, on a laptop
# make test         lint, types and tests
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: quickstart test lint bench clean

quickstart: $(VENV)/installed-demo
	$(BIN)/singalaut run recipes/quickstart.toml
	$(BIN)/singalaut generate --model recipes/quickstart.toml:merge --max-tokens 48 --stream \
	  "Apa ibu kota Thailand?" "ข้าวคืออะไร" "一年有几个季节？"

test: $(VENV)/installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal  # one thread each

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-test
	$(BIN)/python benchmarks/cpu.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo,test]'
	touch $@ $(VENV)/installed-demo
