# Two commands do everything: `make run` (sets up and runs the main job) and `make test`.
PY := .venv/bin/python
.PHONY: setup run test test-gpu explore check bench bench-gpu clean

setup:
	@.ci/setup

run: setup
	@.venv/bin/gristmill flywheel flows.recipes.packages:wheel --out runs/first

# two files of tests at a time; a file stays with one process, for what its fixtures have made
test: setup check
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu:
	@$(PY) .ci/test_gpu.py

explore: setup
	@$(PY) -m pytest -m hypothesis --hypothesis-profile=explore

check: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/pyright --warnings
	@.venv/bin/lint-imports --no-cache

bench: setup
	@$(PY) -m benchmarks.curation
	@$(PY) -m benchmarks.filters
	@$(PY) -m benchmarks.extraction
	@$(PY) -m benchmarks.stream

bench-gpu:
	@$(PY) -m benchmarks.bench_gpu $(OPTIONS)

clean:
	@rm -rf runs .pytest_cache .ruff_cache .hypothesis
