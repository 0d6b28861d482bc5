# `make demo` and `make test` each work as the first command on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test campaign lint install tools format bench stock clean

demo: install  ## distil a student on the embedded sample, in about five minutes
	$(BIN)/python recipes/audioset_kd.py hparams/quickstart.yaml

test: tools lint  ## everything that checks the project
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

campaign: tools  ## hundreds of kills, thousands of damaged files: hours; docs/reliability.md
	$(BIN)/python -m pytest tests/campaign -m campaign --capture=no --durations=0

lint: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/codespell
	$(BIN)/mypy

format: tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## beside the published code: REFERENCE=/a/checkout/of/EfficientAT
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[export,openvino]"
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/bench torchvision==0.26.0
	$(BIN)/python benchmarks/speed.py --torchvision $(VENV)/bench \
		$(if $(REFERENCE),--reference $(abspath $(REFERENCE)))

stock: tools  ## SpeechBrain's own scripts, unchanged, with our encoder: SPEECHBRAIN=/a/checkout
	$(BIN)/python tests/stock/run_stock.py $(SPEECHBRAIN)

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
	rm -rf $(VENV) build dist *.egg-info
