# make run    the experiment of config.yaml, or of EXPERIMENT=experiments/….yaml, to its report
# make test   the tests, under ten minutes on two cores      make lint   ruff, snakefmt, lint
# The environment in .venv is made on first use from the pins in pyproject.toml.

PYTHON ?= python3
EXPERIMENT ?=
ARGS ?=
BIN := .venv/bin
# The target stands after --, so that no option takes it for one more value.
SNAKEMAKE = $(BIN)/snakemake $(if $(EXPERIMENT),--configfile $(EXPERIMENT)) $(ARGS) --
# Bytecode is made of what is used, by importing it: a third of the time. So it must be kept.
export PYTHONDONTWRITEBYTECODE =
COMPILE = $(wildcard scripts/compile_imports.py)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: run plan fetch reproduce why reference test test-all test-journeys test-compat test-cluster lint bench chaos audit verify clean-temp clean-old
.DELETE_ON_ERROR:

run: .venv/run.ok
	$(SNAKEMAKE) all

# Fails where a published number was not reproduced: make reproduce EXPERIMENT=experiments/….yaml
reproduce: .venv/run.ok
	$(SNAKEMAKE) reproduce

# Tries the usual suspects where a published number was not reproduced: results/<experiment>/why.tsv
why: .venv/run.ok
	$(SNAKEMAKE) why

# What is cached, what is to do: bytes to download and hours on one device.
plan: .venv/run.ok
	@$(SNAKEMAKE) plan

# All that needs a network, for a cluster whose nodes have none.
fetch: .venv/run.ok
	$(SNAKEMAKE) fetch

# FlagEmbedding's own evaluator on the staged models, on several devices, beside our numbers.
reference: .venv/run.ok
	$(SNAKEMAKE) reference

# A stamp is written last: an interrupted installation is taken up again by the next make.
.venv/run.ok: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip
	$(INSTALL) --group run
	$(if $(COMPILE),$(BIN)/python $(COMPILE))
	@touch $@

.venv/test.ok: .venv/run.ok
	$(INSTALL) --group test --group lint
	@touch $@

test: .venv/test.ok
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not journey"

test-all: .venv/test.ok
	$(BIN)/pytest -n 2 --dist loadfile

# Whole workflows from config files and the README's commands to result files; fifty minutes.
test-journeys: .venv/test.ok
	$(BIN)/pytest tests/journeys -n 2 --dist loadfile -m journey

# The old library versions in which a dot in a name is fatal, in an environment of their own.
test-compat: .venv/test.ok
	$(BIN)/pytest tests/compat -m compat

# A Slurm of its own, so it needs root and: apt-get install slurm-wlm munge
test-cluster: .venv/test.ok
	$(INSTALL) --group cluster
	$(BIN)/pytest tests/cluster -m cluster

lint: .venv/test.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# Encoding and search beside their peers, a size for two cores; see the scripts for GPUs.
bench: .venv/test.ok
	$(BIN)/python tests/benchmarks/encode.py --small
	$(BIN)/python tests/benchmarks/search.py

# Random faults over a small run; prints survived, lost and hung.
CHAOS_FAULTS ?= 100
CHAOS_SEED ?= 1
chaos: .venv/test.ok
	$(BIN)/python tests/faults/chaos.py --faults $(CHAOS_FAULTS) --seed $(CHAOS_SEED)

# Known vulnerabilities of the pinned packages; each needs an answer in tests/audit_answers.toml.
audit: .venv/run.ok
	$(INSTALL) --group audit
	$(BIN)/python tests/audit.py

# Every file of the store and of the results against what was recorded when it was written.
verify: .venv/run.ok
	$(BIN)/python scripts/verify_files.py $(wildcard store results)

# What version 0.1's layout left in the store and in results; nothing of it is read any more.
clean-old:
	rm -rf store/specs store/embeddings store/hits store/reranked store/reference/data
	find store/datasets -mindepth 1 -maxdepth 1 -type d -exec test -e {}/dataset.json \; -print 2>/dev/null | xargs -r rm -rf

# Unfinished files of runs that were killed; never while a run is under way.
clean-temp:
	find store results -name '.tmp-*' -prune -exec rm -rf {} + 2>/dev/null || true
	rm -rf store/models/.cache/partial
