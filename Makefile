# Everything a person or a machine runs here. `make` alone lists the targets.
#
# PYTHON=python3.12     the interpreter that .venv is built from (3.11 or newer)
# PYTEST_ARGS="-x -k …" more words for pytest
# SEE_RED="F9 F15"      only these failures for see-red
# WORKERS=1             test processes at a time; as many as cores otherwise
# Packages come from whatever index pip is configured for; this file names none.

PYTHON ?= python3
WORKERS ?= auto
VENV := .venv
STAMPS := $(VENV)/stamps
BIN := $(VENV)/bin
PIP := PIP_USER=0 $(BIN)/python -m pip --disable-pip-version-check

# Debian packages that tests need beside Python. As root they are installed; otherwise they are named, and the tests
# that need them are skipped (or fail, when CI=true).
TEST_SYSTEM_PACKAGES := prometheus systemd faketime fiu-utils skopeo docker-registry

# Too large for the lock files (more than 1 GB with what it brings), and needed by a few tests marked long only.
TORCH := torch==2.13.0

# The resolver of `make lock`, and nothing else.
RESOLVER := uv==0.13.9

unexport PYTHONPATH PYTHONHOME
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long kill-matrix see-red check lock clean same-python system-packages

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMPS)/demo | same-python  ## install what the demonstration needs into .venv, and run it
	@$(BIN)/rearguard demo

test: $(STAMPS)/dev system-packages | same-python  ## run every test that is not marked long
	@$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-long: $(STAMPS)/dev $(STAMPS)/torch system-packages | same-python  ## run the tests marked long
	@$(BIN)/python -m pytest -m long $(PYTEST_ARGS) || [ $$? -eq 5 ]  # 5: there is none

see-red: $(STAMPS)/dev system-packages | same-python  ## remove each guard of F1-F19 in a copy: its test must go red
	@$(BIN)/python scripts/see_red.py $(SEE_RED)

kill-matrix: $(STAMPS)/dev system-packages | same-python  ## kill the officer at every step of a rollback, and see it finished once
	@$(BIN)/python -m pytest tests/recovery/test_kill_matrix.py tests/recovery/test_ladder.py $(PYTEST_ARGS)

check: $(STAMPS)/dev | same-python  ## format, lint, types, floors, lock files; needs no network once installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports
	$(BIN)/python scripts/lock.py check

lock: $(STAMPS)/venv | same-python  ## resolve the dependencies anew into requirements/*.lock (needs an index)
	@$(PIP) install --quiet $(RESOLVER)
	$(BIN)/python scripts/lock.py write

clean:  ## remove .venv and caches; demo-state/ and .rearguard/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find src tests benchmarks scripts -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMPS)/venv: scripts/venv.sh scripts/system-packages.sh
	@sh scripts/venv.sh "$(PYTHON)" "$(VENV)"
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/venv pyproject.toml requirements/demo.lock requirements/build.lock
	@echo "Installing what the demonstration needs into $(VENV) (a minute or two, once)."
	@$(PIP) install --quiet -r requirements/demo.lock -r requirements/build.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# dev.lock holds every pin of demo.lock, so this serves the demonstration as well.
$(STAMPS)/dev: $(STAMPS)/venv pyproject.toml requirements/dev.lock requirements/build.lock
	@echo "Installing what the tests need into $(VENV) (a minute or two, once)."
	@$(PIP) install --quiet -r requirements/dev.lock -r requirements/build.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMPS)/demo $@

$(STAMPS)/torch: $(STAMPS)/dev
	@echo "Installing $(TORCH) into $(VENV) for the tests marked long."
	@$(PIP) install --quiet $(TORCH) && touch $@ || echo "Going on; tests of the missing part will say so." >&2

system-packages:
	@sh scripts/system-packages.sh $(TEST_SYSTEM_PACKAGES) || echo "Going on; tests of the missing parts will say so." >&2

# Only when PYTHON= was given: an existing .venv of another version is not silently used in its place.
same-python: | $(STAMPS)/venv
ifneq ($(filter command environment,$(word 1,$(origin PYTHON))),)
	@wanted=$$("$(PYTHON)" -c 'import sys; print(*sys.version_info[:2], sep=".")') && \
	 found=$$($(BIN)/python -c 'import sys; print(*sys.version_info[:2], sep=".")') && \
	 [ "$$wanted" = "$$found" ] || { \
	   echo "$(VENV) was built with Python $$found, but PYTHON=$(PYTHON) is $$wanted. Run 'make clean' first." >&2; exit 1; }
endif
