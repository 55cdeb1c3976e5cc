# Two commands: `make run` makes the table of MovieLens-100K, `make test` checks everything.

# The first of those that it works with, if none is named.
PYTHON ?= $(or $(shell for each in python3.11 python3.12 python3.13; do $$each -c '' 2>/dev/null && echo $$each && break; done),python3.11)
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= output/ml-100k
RECBOLE := recbole-1.2.1-py3-none-any.whl
RECBOLE_SHA256 := 9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407
DATA := data/recbole/dataset_example/ml-100k

.PHONY: run test test-slow test-kill lint install data clean

## Runs the main job on MovieLens-100K and shows what it made.
run: $(VENV)/installed $(DATA)/ml-100k.inter
	@$(BIN)/python -m pipelines.run --ratings $(DATA)/ml-100k.inter --items $(DATA)/ml-100k.item \
		--output $(OUTPUT) --split random --seed 42 --k 100 --num_shards 4 $(ARGS)

## Checks style, types and behaviour, in as many processes as there are cores; `make test-slow` runs what takes longer.
test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(ARGS)

## Runs the tests of whole jobs: of every command of the docs, of jobs that are killed, of wrong feeds.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow $(ARGS)

## Kills the job thirty times, at moments drawn by chance, and looks whether its table is the same.
test-kill: $(VENV)/installed-dev
	SHORTLIST_KILLS=30 $(BIN)/python -m pytest -s tests/test_kill.py $(ARGS)

install: $(VENV)/installed

data: $(DATA)/ml-100k.inter

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "$(PYTHON) does not start Python 3.11, 3.12 or 3.13: install one, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# MovieLens-100K may not be redistributed here; RecBole's package carries a copy. Only its data files are unpacked: the
# package is not installed and never imported.
$(DATA)/ml-100k.inter: | $(VENV)/installed
	@mkdir -p data
	@echo "Fetching MovieLens-100K (inside $(RECBOLE)) ..."
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :none: --dest data recbole==1.2.1
	@echo "$(RECBOLE_SHA256)  data/$(RECBOLE)" | sha256sum --check --quiet - || \
		{ rm -f data/$(RECBOLE); echo "data/$(RECBOLE) is not the file that was pinned, it was deleted: run make again"; exit 1; }
	@$(BIN)/python -c "import zipfile; z = zipfile.ZipFile('data/$(RECBOLE)'); z.extractall('data', [n for n in z.namelist() if n.startswith('recbole/dataset_example/ml-100k/')])"
	@touch $@

clean:
	rm -rf $(VENV) data output
