# Everything that is done to this repository by hand, by its name. `make` alone tells what there is.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
# Two for each core: most of the time a test waits for a process, an engine or a deadline.
PYTEST_WORKERS ?= $(shell echo $$(( 2 * $$(nproc) )))
PYTEST_ARGS ?=
BENCH_ARGS ?=
CONTAINER_ARGS ?=
# What `make quick` compares with to see what changed.
BASE ?= main

.PHONY: help venv proto lint lint-style lint-types lint-imports lint-dependencies lint-contract lint-generated \
	docs test test-packages quick quick-lint quick-tests sim demo lab bench wheels deb containers constraints requirements release clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(READY) ## the virtual environment in .venv, with pinned versions; redone when the needs change

$(READY): pyproject.toml constraints.txt .ci/packages
	@.ci/packages python3-venv
	@echo "making $(VENV) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Galactica needs Python 3.11 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --root-user-action ignore \
		-c constraints.txt --build-constraint constraints.txt \
		--editable '.[scheduler,docker,enrol,cloud]' --group dev
	@touch $@

proto: venv ## make the Python code beside the .proto files anew
	@PYTHON=$(CURDIR)/$(BIN)/python sh proto/generate.sh

lint: lint-style lint-types lint-imports lint-dependencies lint-contract lint-generated ## every check that reads the code without running it

lint-style: venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted as above: run $(BIN)/ruff format ."; exit 1; }

lint-types: venv
	@$(BIN)/mypy --strict

# It follows no links: it reads a copy in which the package is one folder.
lint-imports: venv
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -rL src/galactica "$$copy" \
		&& PYTHONPATH="$$copy" $(BIN)/lint-imports --no-cache

lint-dependencies: venv
	@$(BIN)/deptry .

lint-contract: venv
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against proto/released.binpb

lint-generated: venv
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && cp -r proto "$$fresh" \
		&& PYTHON=$(CURDIR)/$(BIN)/python sh "$$fresh/proto/generate.sh" \
		&& diff -r -x __pycache__ proto "$$fresh/proto" \
		|| { echo "the generated code is stale: run make proto and commit it"; exit 1; }

# Not --quiet: mkdocs then counts no warning, and a strict build cannot fail.
docs: venv ## the documentation's site, in site/; a broken link ends it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

# The engine and what images and hosts are made from; the rest is in the environment.
TEST_PACKAGES := faketime docker.io docker-registry iproute2 iptables busybox-static procps mosquitto debootstrap systemd-container

# A simulated history depends on the order of hash maps too: fixed, so that a seed that fails here fails anywhere. Bytecode
# is kept whatever the environment says, or each of the processes that the tests start would compile the product anew.
RUN_TESTS = PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m tests.with_engine --tell \
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

test: venv ## the product's tests, on a real Docker Engine (the one that runs, else one for the time of the tests)
	@.ci/packages $(TEST_PACKAGES)
	@$(RUN_TESTS) --ignore=tests/packages

# Apart from the others and with fewer workers: building keeps both cores busy, and the lab counts heartbeats.
test-packages: PYTEST_WORKERS = $(shell echo $$(( (3 * $$(nproc) + 1) / 2 )))
test-packages: venv ## the tests of what is built from here: wheel, Debian package, images, release, commit hooks
	@.ci/packages $(TEST_PACKAGES)
	@$(RUN_TESTS) tests/packages

quick: venv ## a minute before a commit: lint of what changed since BASE (main), unit and property tests, 50 simulated seeds
	@$(MAKE) --jobs=2 quick-lint quick-tests

# Python files that are not as in BASE: committed since, changed, or new.
CHANGED = { git diff --name-only --diff-filter=d "$$(git merge-base HEAD $(BASE) 2>/dev/null || echo HEAD)" -- '*.py'; \
	git ls-files --others --exclude-standard -- '*.py'; } | sort -u

quick-lint: venv
	@changed=$$($(CHANGED)); [ -n "$$changed" ] || exit 0; \
		$(BIN)/ruff check --quiet --force-exclude $$changed \
		&& $(BIN)/ruff format --check --quiet --force-exclude $$changed \
		&& { ! grep -qE '^(scheduler|agent)/' <<<"$$changed" || $(BIN)/mypy --strict; }

quick-tests: venv
	@PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE= SIM_COUNT=50 $(BIN)/python -m pytest -q -n logical tests/unit tests/property tests/sim $(PYTEST_ARGS)

# SEEDS=1000-1999 or MINUTES=60; without both five minutes.
sim: venv ## hunt with the simulator on all cores: SEEDS=a-b or MINUTES=n; prints each bad seed with the line that replays it
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim.hunt $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES))

demo: venv ## watch three servers and nine cells die and be replaced, for about half a minute
	@$(BIN)/python deploy/demo.py

lab: venv ## a fleet of four hosts on this machine to play with, until Ctrl-C (as root)
	@.ci/packages iproute2 iptables
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m deploy.lab up

bench: venv ## measure what the table in docs/numbers.md says; BENCH_ARGS="calm --hour" for an hour of loss and stalls
	@.ci/packages $(TEST_PACKAGES)
	@$(BIN)/python -m tests.with_engine $(BIN)/python -m tests.bench $(BENCH_ARGS)

# The services' own wheels and those of all that they need, from which the next two are made without a network.
wheels: venv
	@deploy/wheelhouse $(BIN)/python dist/wheels

deb: wheels ## a package for Debian 12 below dist/
	@.ci/packages python3.11
	@deploy/deb/build dist/wheels dist

containers: wheels ## images of scheduler and agent; CONTAINER_ARGS="--build-arg BASE=IMAGE" begins from another base
	@deploy/containers/build dist/wheels $(CONTAINER_ARGS)

constraints: ## take the newest versions that fit pyproject.toml into constraints.txt
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" \
		&& "$$fresh/bin/pip" install --quiet --upgrade pip \
		&& "$$fresh/bin/pip" install --quiet --editable '.[scheduler,docker,enrol,cloud]' --group dev hatchling \
		&& { sed -n '/^#/p' constraints.txt; "$$fresh/bin/pip" freeze --all --exclude-editable; } > "$$fresh/constraints.txt" \
		&& cp "$$fresh/constraints.txt" constraints.txt
	@$(MAKE) requirements

# What the units install, and where: Debian 12 has Python 3.11 and glibc 2.36. The hashes are those of all files, so
# that pip may take the one for the host's processor; the versions have to be the same for both.
UNITS_FILE := deploy/systemd/requirements.txt
UNITS_EXTRAS := scheduler docker enrol cloud bus
UNITS_MACHINES := x86_64 aarch64

requirements: venv ## pin what the systemd units install, by hashes, in the versions of constraints.txt
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
		&& for machine in $(UNITS_MACHINES); do \
			$(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --output-file "$$fresh/$$machine" \
				--python-version 3.11 --python-platform "$$machine-manylinux_2_36" --constraints constraints.txt \
				$(UNITS_EXTRAS:%=--extra %) pyproject.toml || exit; \
		done \
		&& diff $(UNITS_MACHINES:%="$$fresh/%") \
		&& { sed -n '/^#/p' $(UNITS_FILE); cat "$$fresh/x86_64"; } > "$$fresh/all" && cp "$$fresh/all" $(UNITS_FILE)

release: venv ## check, build into dist/, tag and record the version in src/galactica/__init__.py; see CONTRIBUTING.md
	@$(BIN)/python -m deploy.release

clean: ## remove what the other targets have made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist site *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
