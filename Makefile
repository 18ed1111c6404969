# Everything a fresh machine needs is Python (3.10 or newer) and make; with a C compiler, the kernel is compiled.
PYTHON ?= python3

# Set-up is stamped: it runs again only when what it installs has changed.
DEV := .venv
LIGHT := .venv-demo
DEMO := build/demo

.PHONY: help demo test run-tests quick full test-newest test-oldest packages check bench fuzz fixtures golden clean

help:
	@echo "make demo      install the light package (no torch), fold a checkpoint, show the result"
	@echo "make test      install everything; run ruff, mypy and the tests, on every core"
	@echo "make quick     run the tests that need no torch"
	@echo "make full      run the many combinations that make test leaves out"
	@echo "make test-newest  run the tests on the newest releases (Python 3.13)"
	@echo "make test-oldest  run the tests on the oldest releases that pyproject.toml allows (Python 3.10)"
	@echo "make packages  install packages with such models (pinned), and try the verbs on their classes"
	@echo "make bench     run the benchmarks of tests/bench"
	@echo "make fuzz      damage files and command lines for an hour, and see what the verbs do (tests/fuzz)"
	@echo "make fixtures  build the files of fixtures/ again"
	@echo "make golden    write the outputs in fixtures/golden, README.md and docs again"
	@echo "make clean     remove what the others made"

# What is compiled is part of the set-up.
KERNEL := hatch_build.py $(wildcard wnconvert/numerics/kernel/*.[ch])

$(LIGHT)/stamp: pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(LIGHT)
	$(LIGHT)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV)/stamp: pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(LIGHT)/stamp
	@mkdir -p $(DEMO)
	$(LIGHT)/bin/wnconvert fold fixtures/g_02500000 -o $(DEMO)/g_02500000.folded --force > $(DEMO)/result
	@head -n 5 $(DEMO)/result; echo ...; tail -n 2 $(DEMO)/result
	$(LIGHT)/bin/wnconvert compare fixtures/g_02500000 $(DEMO)/g_02500000.folded
	@echo
	@echo "The folded generator is $(DEMO)/g_02500000.folded. Next:"
	@echo "  $(LIGHT)/bin/wnconvert inspect YOUR_CHECKPOINT"
	@echo "  $(LIGHT)/bin/wnconvert fold YOUR_CHECKPOINT --dry-run"

# xdist keeps the tests of a file, and those marked alone, together in one worker.
PYTEST := $(DEV)/bin/python -m pytest
SPREAD := --numprocesses auto --dist loadgroup --no-loadscope-reorder

# Both at once, since the tests wait for processes and disks now and then.
test: $(DEV)/stamp
	@$(MAKE) --no-print-directory --jobs=2 check run-tests

run-tests: $(DEV)/stamp
	$(PYTEST) $(SPREAD)

# Names, numbers, plans and files: what of it needs torch is skipped, and nothing may import it.
quick: $(DEV)/stamp
	$(PYTEST) $(SPREAD) --no-torch $(addprefix tests/,tensors numerics layers plan formats onnx storage reports)

check: $(DEV)/stamp
	$(DEV)/bin/ruff check
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/mypy

full: $(DEV)/stamp
	$(PYTEST) $(SPREAD) -m full

# The same tests on other releases than those of constraints.txt, each in an environment of its own.
NEWEST_PYTHON ?= python3.13
OLDEST_PYTHON ?= python3.10
.venv-newest/stamp: OTHER_PYTHON = $(NEWEST_PYTHON)
.venv-oldest/stamp: OTHER_PYTHON = $(OLDEST_PYTHON)
.venv-newest/stamp .venv-oldest/stamp: .venv-%/stamp: pyproject.toml constraints-%.txt $(KERNEL)
	$(OTHER_PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints-$*.txt --editable '.[dev]'
	@touch $@

test-newest test-oldest: test-%: .venv-%/stamp
	.venv-$*/bin/python -m pytest $(SPREAD)

# In an environment of its own: these packages ask for versions that do not fit together.
PACKAGES := .venv-packages
$(PACKAGES)/stamp: pyproject.toml constraints.txt tests/packages/requirements.txt
	$(PYTHON) -m venv $(PACKAGES)
	$(PACKAGES)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PACKAGES)/bin/python -m pip install --quiet --no-deps --requirement tests/packages/requirements.txt
	PATH="$(CURDIR)/$(PACKAGES)/bin:$$PATH" npm install --silent --prefix $(PACKAGES)/azurite azurite@3.37.0
	@touch $@

packages: $(PACKAGES)/stamp
	$(PACKAGES)/bin/python -m pytest $(SPREAD) tests/packages

bench: $(DEV)/stamp
	$(DEV)/bin/python -m tests.bench
	$(DEV)/bin/python -m tests.bench.growth

fuzz: $(DEV)/stamp
	$(DEV)/bin/python -m tests.fuzz --minutes 60 --seed 1

fixtures: $(DEV)/stamp
	$(DEV)/bin/python fixtures/make.py

golden: $(DEV)/stamp
	$(PYTEST) --refresh tests/whole/test_golden.py tests/whole/test_docs.py tests/whole/test_notebook.py

clean:
	rm -f wnconvert/numerics/kernel/*.library
	rm -rf $(DEV) $(LIGHT) $(PACKAGES) .venv-newest .venv-oldest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
