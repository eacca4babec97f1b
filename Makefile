PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow bench lint format clean

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m "slow and not gpu"

# Short comparisons with the published execution pattern on a CPU; docs/performance.md has more.
bench: $(VENV)/installed
	$(BIN)/python bench/compare.py --what load --size 512 --pairs 8 --device cpu
	$(BIN)/python bench/compare.py --what infer --models 2 --lightweight --size 256 --batch-size 4 --rounds 3 --device cpu
	$(BIN)/python bench/compare.py --what train --lightweight --size 256 --batch-size 8 --rounds 3 --device cpu
	$(BIN)/python bench/compare.py --what label --backbones hrnet_w18,hrnet_w18_small --lightweight --size 256 --pairs 8 --batch-size 4 --rounds 2 --device cpu
	$(BIN)/python bench/report.py outdir/bench/load.json outdir/bench/infer.json outdir/bench/train.json outdir/bench/label.json

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) outdir/demo
