# make demo, make test: both make .venv first, install what is needed, build, and run.
# The environment is made again when a requirement or a C++ source changes.

PYTHON ?= python3
BIN = .venv/bin
SAY_IF_NOT_BUILT = $(BIN)/python -c "from minigpt import ops; why = ops.available()['cpp']; why and print('minigpt:', why)"
SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py pyproject.toml

demo: .venv/installed
	$(BIN)/minigpt demo

test: .venv/installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal

test-slow: .venv/installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist worksteal

bench: .venv/installed-dev
	$(BIN)/minigpt bench all

notebooks: .venv/installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python tutorials/build.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(find csrc minigpt tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.venv/made:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/made $(SOURCES)
	$(BIN)/python -m pip install -q -e ".[all]"
	@$(SAY_IF_NOT_BUILT)
	touch $@

.venv/installed-dev: .venv/made $(SOURCES)
	$(BIN)/python -m pip install -q -e ".[all,dev]"
	@$(SAY_IF_NOT_BUILT)
	touch $@ .venv/installed

clean:
	rm -rf .venv build minigpt/*.so *.egg-info out

.PHONY: demo test test-slow bench notebooks format clean
