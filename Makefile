# make demo   install into .venv and segment the sample photo
# make test   install into .venv and run the whole test suite
# make lint   ruff's checks and format check
# make app    start the Gradio demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test lint app clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-base: $(BIN)/python setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-$(VENV)/installed-app: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[app]'
	touch $@

app: $(VENV)/installed-app
	$(BIN)/python app.py

test: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed-base
	$(BIN)/python examples/demo.py

$(VENV)/installed-app: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[app]'
	touch $@

app: $(VENV)/installed-app
	$(BIN)/python app.py

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) outputs build dist *.egg-info
