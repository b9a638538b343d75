# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPECTED := .venv-expected
STACKS := runner/stacks

.PHONY: demo run test test-expected test-gpu chaos lint format bench bench-gpu clean

demo: $(VENV)/installed  ## one job end to end on this machine, without Slack, Redis, GPU or hub
	@$(BIN)/python -m bot.local demo

run: $(VENV)/installed  ## the same parts, left running until Ctrl-C
	@$(BIN)/python -m bot.local run

test: $(VENV)/installed  ## every test but those that need a GPU, on the current stack, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-expected: $(EXPECTED)/installed  ## the training tests on the stack of the original report
	$(EXPECTED)/bin/python -m pytest tests/training -n 2 --dist loadfile

test-gpu: $(VENV)/installed  ## the tests that need a CUDA device, which the targets above leave out
	$(BIN)/python -m pytest -m gpu

chaos: $(VENV)/installed  ## kills and cuts at random moments for MINUTES=30, judged (SEED=N draws the same again); then the store against its model
	$(BIN)/python -m tests.faults.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) --report .qlora/chaos.md
	$(BIN)/python -m pytest -q tests/runner/test_store_machine.py --hypothesis-profile=chaos

lint: $(VENV)/installed  ## style, types, who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed  ## figures, measured here and now
	@$(BIN)/python -m tests.benchmarks.bot_footprint
	@$(BIN)/python -m tests.benchmarks.claim_to_step
	@$(BIN)/python -m tests.benchmarks.plan_accuracy
	@$(BIN)/python -m tests.benchmarks.config_guard
	@$(BIN)/python -m tests.benchmarks.training_parity
	@$(BIN)/python -m tests.benchmarks.scale

bench-gpu: $(VENV)/installed  ## training at Llama shapes against plain TRL; needs a CUDA device, takes 17 GB of disk
	@$(BIN)/python -m tests.benchmarks.gpu_shapes

format: $(VENV)/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## removes what the targets above created, except results under .qlora/outputs
	rm -rf $(VENV) $(EXPECTED) .qlora/redis .qlora/workspace .qlora/logs

$(VENV)/installed: pyproject.toml $(STACKS)/current.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(STACKS)/current.txt -e '.[bot,training,local,dev]'
	@touch $@

$(EXPECTED)/installed: pyproject.toml $(STACKS)/expected-2024-12-30.txt
	$(PYTHON) -m venv $(EXPECTED)
	$(EXPECTED)/bin/python -m pip install --quiet -c $(STACKS)/expected-2024-12-30.txt -e '.[training,dev]'
	@touch $@
