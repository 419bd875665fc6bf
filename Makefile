# make demo   install into .venv, run all tasks on a generated scene and on the sample photo
# make app    install what the app needs and start it in the browser, with the small model
# make tiny   train the small checkpoint from scratch in outputs/tiny, put it into hub_cards/xsam-tiny
# make tiny-card   measure it and write the figures into its card
# make test   install what the tests need and run the whole suite
# make lint   ruff's checks and format check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

TINY := outputs/tiny
TINY_CARD := hub_cards/xsam-tiny
TINY_FILES := config.json generation_config.json model.safetensors processor_config.json \
	tokenizer.json tokenizer_config.json chat_template.jinja

.PHONY: demo app tiny tiny-card test lint clean

demo: $(VENV)/installed-base
	$(BIN)/python examples/demo.py

app: $(VENV)/installed-app
	$(BIN)/python app.py

# Freed memory is kept, in huge pages: the many large arrays of a step come and go a sixth faster. Only glibc reads it.
tiny: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456

# Goes on where it was interrupted; a stage that is done is left as it is, even if its recipe has changed.
tiny: $(VENV)/installed-train $(TINY)/tokenizer/tokenizer.json
	for stage in 1 2 3; do \
		$(BIN)/xsam train training/recipes/tiny/stage$$stage.yaml --resume_from_checkpoint=last || exit 1; \
		mkdir -p $(TINY_CARD)/training || exit 1; \
		cp $(TINY)/stage$$stage/trainer_state.json $(TINY_CARD)/training/stage$$stage.json || exit 1; \
	done
	cp $(TINY_FILES:%=$(TINY)/stage3/%) $(TINY_CARD)/

$(TINY)/tokenizer/tokenizer.json: | $(VENV)/installed-train
	$(BIN)/python -m xsam_training.data.shape_world.tokenizer $(@D)

tiny-card: $(VENV)/installed-train
	$(BIN)/python -m xsam_training.shape_world_card $(TINY_CARD) --output $(TINY)/figures

# Two processes with a thread each: models as small as those of the tests gain nothing from a second thread.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

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

$(VENV)/installed-train: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[train,evaluate]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed-base
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
