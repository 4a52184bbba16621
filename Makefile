# From a fresh clone: `make demo` runs the main job, `make test` the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all check bench docs clean

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) --editable '.[embed,generate,dev]'
	touch $@

$(VENV)/bench: $(VENV)/dev
	$(INSTALL) --editable '.[bench]'
	touch $@

demo: $(VENV)/core ## prompts selected, annotated and paired, offline, into demo/
	@mkdir -p demo
	@cd demo && { test -f irpipe.toml || ../$(BIN)/irpipe init; }
	@cd demo && ../$(BIN)/irpipe run build-pairs
	@echo
	@cd demo && ../$(BIN)/irpipe sql "SELECT split, count(*) AS pairs, count(DISTINCT prompt_id) AS prompts FROM pairs GROUP BY split ORDER BY split"
	@echo
	@echo "A plot of what was selected:  demo/artifacts/objects/*/*/coverage.png"
	@echo "Next, in the folder demo:     ../$(BIN)/irpipe plan build-pairs --set select-prompts.count=300"

test: $(VENV)/dev ## the tests, but for the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(VENV)/dev ## all tests
	$(BIN)/python -m pytest -n 2

check: $(VENV)/dev ## format, lint, types, layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .typecheck/irpipe
	for folder in pipeline schemas stages models microworld recipes; do ln -sfn ../../$$folder .typecheck/irpipe/$$folder; done
	$(BIN)/mypy
	cd .typecheck && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/dev ## docs/cli.md, from the commands themselves
	$(BIN)/python docs/generate.py

bench: $(VENV)/bench ## every benchmark; figures go to benchmarks/README.md by hand
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .typecheck demo build dist *.egg-info
