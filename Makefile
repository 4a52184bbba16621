# From a fresh clone: `make demo` runs the main job, `make test` the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IRPIPE := ../$(BIN)/irpipe
# Not --quiet: it hides the warnings that --strict counts, and so every broken link.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-hps demo-rahf test test-all check bench mutants fuzz docs claims-rm claims-refl claims-hps claims-rahf clean

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/demo: $(VENV)/core
	$(INSTALL) --editable '.[embed,generate,train,tune,measure,report]'
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) --editable '.[embed,generate,train,tune,measure,richhf,search,report,dev]'
	touch $@

$(VENV)/bench: $(VENV)/dev
	$(INSTALL) --editable '.[bench]'
	touch $@

$(VENV)/mutants: $(VENV)/dev
	$(INSTALL) --editable '.[mutants]'
	touch $@

demo: $(VENV)/demo ## from nothing to a tuned generator and its evaluation, offline, into demo/
	@mkdir -p demo
	@cd demo && { test -f irpipe.toml || $(IRPIPE) init; }
	@cd demo && $(IRPIPE) run evaluate-rm
	@echo
	@cd demo && $(IRPIPE) show evaluate-rm | sed -n 's|^  path *\(.*\)|\1/report.txt|p' | xargs cat
	@echo
	@cd demo && $(IRPIPE) run compare-generators
	@echo
	@cd demo && $(IRPIPE) show compare-generators | sed -n 's|^  path *\(.*\)|\1/report.txt|p' | xargs cat
	@echo
	@cd demo && $(IRPIPE) sql "SELECT split, count(*) AS pairs, count(DISTINCT prompt_id) AS prompts FROM pairs GROUP BY split ORDER BY split"
	@echo
	@cd demo && $(IRPIPE) show select-prompts | sed -n 's|^  path *\(.*\)|What was selected:  \1/coverage.png|p'
	@cd demo && $(IRPIPE) show generate-images | sed -n 's|^  path *\(.*\)|What was drawn:     \1/sheets/0.png|p'
	@cd demo && $(IRPIPE) show train-rm | sed -n 's|^  path *\(.*\)|How it was trained: \1/curves.png|p'
	@cd demo && $(IRPIPE) show evaluate-rm | sed -n 's|^  path *\(.*\)|Its evaluation:     \1/evaluation.png|p'
	@cd demo && $(IRPIPE) show refl | sed -n 's|^  path *\(.*\)|How it was tuned:   \1/curves.png and before_after.png|p'
	@cd demo && $(IRPIPE) show compare-generators | sed -n 's|^  path *\(.*\)|Its evaluation:     \1/side_by_side.png|p'
	@cd demo && $(IRPIPE) report --out report.html > /dev/null && echo "All of it, as a page:  demo/report.html"
	@echo "Next, in demo/:     $(IRPIPE) plan evaluate-rm --set simulate-annotations.noise=0.2"

# With the store of `make demo`, so that what that made is used again.
demo-hps: $(VENV)/demo ## HPS from end to end, into demo-hps/: choices, classifier, table 2, tuning set, adaptation, table 4
	@mkdir -p $@ demo
	@cd $@ && { test -f irpipe.toml || { $(IRPIPE) init --recipe hps-micro && sed -i 's|^store = .*|store = "../demo/artifacts"|' irpipe.toml; }; }
	@cd $@ && $(IRPIPE) run evaluate-rm
	@echo
	@cd $@ && $(IRPIPE) show evaluate-rm | sed -n 's|^  path *\(.*\)|\1/report.txt|p' | xargs cat
	@echo
	@cd $@ && $(IRPIPE) run measure-images
	@echo
	@cd $@ && for table in compare-generators measure-images; do $(IRPIPE) show $$table | sed -n 's|^  path *\(.*\)|\1/report.txt|p' | xargs cat; echo; done
	@cd $@ && $(IRPIPE) report --out report.html > /dev/null && echo "All of it, as a page:  $@/report.html"

demo-rahf: $(VENV)/demo ## rich human feedback from end to end, into demo-rahf/: points, words, scores, RAHF, tables 1 to 4
	@mkdir -p $@ demo
	@cd $@ && { test -f irpipe.toml || { $(IRPIPE) init --recipe rahf-micro && sed -i 's|^store = .*|store = "../demo/artifacts"|' irpipe.toml; }; }
	@cd $@ && $(IRPIPE) run evaluate-rahf
	@echo
	@cd $@ && $(IRPIPE) show evaluate-rahf | sed -n 's|^  path *\(.*\)|\1/report.txt|p' | xargs cat
	@cd $@ && $(IRPIPE) report evaluate-rahf --out report.html

test: $(VENV)/dev ## the tests, but for the slow ones; two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(VENV)/dev ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/dev ## format, lint, types, layers, licences of dependencies, docs: generated pages are current, and the site builds without a warning
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .typecheck/irpipe
	for folder in cli exports pipeline schemas stages views report models microworld recipes; do ln -sfn ../../$$folder .typecheck/irpipe/$$folder; done
	$(BIN)/mypy
	cd .typecheck && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache
	$(BIN)/pip-licenses > /dev/null # fails on what is installed: uninstall a package that pyproject.toml no longer asks for
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pytest -q tests/test_house.py -k "shapes or budgets or places or order"
	$(MKDOCS)

mutants: $(VENV)/mutants ## whether the tests can fail: 200 small changes, an hour on two cores; MUTANTS="--count 20 --seed 1" for others
	$(BIN)/python -m tests.mutants $(MUTANTS)

fuzz: $(VENV)/dev ## 10,000 damaged inputs for everything that reads files, in a minute; FUZZ="--count 100000 --seed 1" for others
	$(BIN)/python -m tests.fuzz $(FUZZ)

docs: $(VENV)/dev ## the pages made of the code, and the site, into site/ (its search needs a server: python -m http.server -d site)
	$(BIN)/python docs/generate.py
	$(MKDOCS)

bench: $(VENV)/bench ## every benchmark; figures go to benchmarks/README.md by hand
	$(BIN)/python -m benchmarks

claims-rm: $(VENV)/demo ## what is claimed of reward models (docs/claims.md), in claims-rm/: about an hour on two cores; goes on if interrupted
	@mkdir -p $@
	@cd $@ && { test -f irpipe.toml || $(IRPIPE) init --recipe $@; }
	@cd $@ && for table in evaluate-rm evaluate-noise-low evaluate-noise-high evaluate-two-people; do $(IRPIPE) run $$table || exit; done

claims-refl: $(VENV)/demo ## what is claimed of ReFL (docs/claims.md), in claims-refl/: 75 minutes on two cores; goes on if interrupted
	@mkdir -p $@
	@cd $@ && { test -f irpipe.toml || $(IRPIPE) init --recipe $@; }
	@cd $@ && for table in main controls rivals failing hacking; do $(IRPIPE) run compare-$$table || exit; done

claims-hps: $(VENV)/demo ## what is claimed of HPS (docs/claims.md), in claims-hps/: 75 minutes on two cores; goes on if interrupted
	@mkdir -p $@
	@cd $@ && { test -f irpipe.toml || $(IRPIPE) init --recipe $@; }
	@cd $@ && for table in evaluate-rm compare-main compare-variants compare-unguided compare-refl compare-hacked; do $(IRPIPE) run $$table || exit; done

claims-rahf: $(VENV)/demo ## what is claimed of RAHF (docs/claims.md), in claims-rahf/: some 75 minutes on two cores; goes on if interrupted
	@mkdir -p $@
	@cd $@ && { test -f irpipe.toml || $(IRPIPE) init --recipe $@; }
	@cd $@ && for table in evaluate-rahf compare-guided compare-tuned; do $(IRPIPE) run $$table || exit; done

clean:
	rm -rf $(VENV) .typecheck demo demo-hps demo-rahf claims-rm claims-refl claims-hps claims-rahf site build dist *.egg-info
