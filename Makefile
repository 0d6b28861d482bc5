# `make demo` and `make test` each work as the first command on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A home of its own, empty at the start: what happens to lie in a user's home or caches
# must not decide whether a test passes.
HOME_FOLDER := $(CURDIR)/.home
WITH_EMPTY_HOME := rm -rf $(HOME_FOLDER) && mkdir $(HOME_FOLDER) && env \
	HOME=$(HOME_FOLDER) TORCH_HOME=$(HOME_FOLDER)/torch HF_HOME=$(HOME_FOLDER)/huggingface \
	XDG_CACHE_HOME=$(HOME_FOLDER)/cache XDG_CONFIG_HOME=$(HOME_FOLDER)/config

.PHONY: demo test campaign lint install tools format bench litert oracle stock docs dist \
	clean

demo: install  ## distil students on the embedded sample, in about seven minutes
	$(WITH_EMPTY_HOME) $(BIN)/python recipes/audioset_kd.py hparams/quickstart.yaml

test: tools lint  ## everything that checks the project
	$(WITH_EMPTY_HOME) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder -r s

campaign: tools  ## hundreds of kills, thousands of damaged files: hours; docs/reliability.md
	$(WITH_EMPTY_HOME) $(BIN)/python -m pytest campaigns -m campaign --capture=no \
		--durations=0

lint: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

format: tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# EVENTS_REFERENCE=/a/checkout/of/EfficientSED, too
bench: install  ## beside the published code: REFERENCE=/a/checkout/of/EfficientAT
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[export,openvino]"
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/bench torchvision==0.26.0 \
		einops==0.8.2 einx==0.4.3 frozendict==2.5.1 rotary-embedding-torch==0.9.1
	$(BIN)/python benchmarks/speed.py --torchvision $(VENV)/bench \
		$(if $(REFERENCE),--reference $(abspath $(REFERENCE))) \
		$(if $(EVENTS_REFERENCE),--events_reference $(abspath $(EVENTS_REFERENCE)))

litert:  ## the export to LiteRT, in an environment of its own
	$(PYTHON) -m venv $(VENV)/litert
	grep ^torch constraints.txt > $(VENV)/litert/constraints.txt  # these two fit together
	$(VENV)/litert/bin/pip install --quiet --constraint $(VENV)/litert/constraints.txt \
		--editable ".[litert]" pytest
	$(WITH_EMPTY_HOME) $(VENV)/litert/bin/python -m pytest -W ignore tests/test_litert.py

oracle:  ## evaluation of events beside sed_scores_eval and sed_eval, which need an old pandas
	$(PYTHON) -m venv $(VENV)/oracle
	$(VENV)/oracle/bin/pip install --quiet pytest pandas==2.3.3 sed_scores_eval==0.0.4 \
		sed_eval==0.2.1 dcase_util==0.2.20
	$(WITH_EMPTY_HOME) $(VENV)/oracle/bin/python -m pytest --noconftest -W ignore \
		tests/test_event_oracle.py

stock: tools  ## SpeechBrain's own scripts, unchanged, with our encoder: SPEECHBRAIN=/a/checkout
	$(BIN)/python tests/stock/run_stock.py $(SPEECHBRAIN)

docs: install  ## the site, in site/; tutorials are executed if their sound can be fetched
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	export PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1; \
	python docs/tutorials/fetch_sound.py && export EXECUTE_TUTORIALS=true; \
	mkdocs build --strict --quiet

dist:  ## wheel and source distribution, checked and tried in a venv of their own
	rm -rf dist build $(VENV)/dist
	$(PYTHON) -m venv $(VENV)/dist
	$(VENV)/dist/bin/pip install --quiet build twine
	$(VENV)/dist/bin/python -m build --outdir dist .
	$(VENV)/dist/bin/twine check --strict dist/*
	$(VENV)/dist/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(VENV)/dist && bin/efficientat --help > /dev/null && bin/efficientat list > /dev/null

install: $(VENV)/installed
tools: $(VENV)/installed-tools

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-tools: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

clean:  ## what was installed and built; results stay
	rm -rf $(VENV) $(HOME_FOLDER) build dist *.egg-info
