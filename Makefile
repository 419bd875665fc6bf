# make demo   install into .venv and segment the sample photo
# make app    install what the app needs and start it in the browser
# make test   install what the tests need and run the whole suite
# make lint   ruff's checks and format check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo app test lint clean

demo: $(VENV)/installed-base
	$(BIN)/python examples/demo.py

app: $(VENV)/installed-app
	$(BIN)/python app.py

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) outputs build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-base: $(VENV)/bin/python setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-app: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[app]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
