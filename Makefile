# Each target sets up what it needs in .venv; nothing but Python (3.11 or newer) and make is asked for.
# PYTHON=python3.12 chooses an interpreter, ARGS='…' replaces the arguments of demo, bench and soak and adds to those of test.

SHELL := /bin/sh
# Compiled once, as an installed package is, not at every start of a process.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(PATH):/usr/sbin:/sbin:$(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test lint bench soak clean help system-packages

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
COVERAGE_MIN := 85
WORKERS := --numprocesses 4 --dist loadgroup
SOAK_ARGS := -m soak --no-cov -p no:randomly

# command:Debian package, of what some tests drive from outside
SYSTEM := mosquitto:mosquitto gssdp-discover:gupnp-tools nft:nftables ip:iproute2 ethtool:ethtool tinyproxy:tinyproxy-bin \
  initdb:postgresql cc:gcc

help:  ## these lines
	@sed -n 's/^\([a-z]*\):.*## /make \1#/p' $(MAKEFILE_LIST) | awk -F'#' '{ printf "%-12s%s\n", $$1, $$2 }'

demo: $(if $(findstring nats,$(ARGS))$(findstring postgresql,$(ARGS)),$(VENV)/.engines,$(VENV)/.run)  ## a whole fleet on this machine: live, then an outage and the way back, then an audit
	@$(BIN)/hubline demo $(or $(ARGS),--seconds 30 --script outage)

test: lint system-packages  ## lint, then all tests with branch coverage
	@$(BIN)/python -m pytest $(WORKERS) --cov --cov-report=term --cov-fail-under=$(COVERAGE_MIN) $(ARGS)

lint: $(VENV)/.test  ## ruff, mypy and the import rules
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "ruff, mypy and the import rules are content."

bench: $(VENV)/.test system-packages  ## measure against the peers that docs/performance.md names
	@$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/.test system-packages  ## the long runs
	@$(BIN)/python -m pytest $(or $(ARGS),$(SOAK_ARGS))

clean:  ## remove .venv and everything that can be made again
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: installed again only when what is to be installed has changed. What the demo needs takes half the time of what the tests need.

$(VENV)/.run: setup.cfg pyproject.toml | $(VENV)/.ready
	@if [ $(VENV)/.test -nt setup.cfg ] && [ $(VENV)/.test -nt pyproject.toml ]; then :; else \
	  echo "Installing what hubline needs into $(VENV) …"; $(PIP) install --editable .; \
	fi
	@touch $@

$(VENV)/.engines: setup.cfg pyproject.toml | $(VENV)/.ready
	@if [ $(VENV)/.test -nt setup.cfg ] && [ $(VENV)/.test -nt pyproject.toml ]; then :; else \
	  echo "Installing what hubline and its engines need into $(VENV) …"; $(PIP) install --editable '.[nats,postgresql]'; \
	fi
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/.ready
	@echo "Installing what hubline and its tests need into $(VENV) …"
	@$(PIP) install --editable '.[test]'
	@touch $@

# Debian's python3 has venv, but without the package python3.X-venv not the ensurepip that puts pip into it.
$(VENV)/.ready:
	@python=; \
	for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Hubline needs Python 3.11 or newer, but $(or $(PYTHON),python3) is: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)." \
	    "Name another with PYTHON=/path/to/python3." >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  package="$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
	  echo "$$python cannot make virtual environments. On Debian and Ubuntu, as root: apt-get install $$package" >&2; exit 1; \
	fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV) || exit 1; \
	touch $@

# As root on a Debian-like machine the missing programs are installed; elsewhere the tests that need them are skipped and say so.
system-packages:
	@missing=; \
	for pair in $(SYSTEM); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing$$missing …"; \
	  apt="apt-get -q -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { timeout 300 $$apt install --no-install-recommends $$missing || \
	    { timeout 60 $$apt update && timeout 300 $$apt install --no-install-recommends $$missing; }; } \
	    >$(VENV)/apt.log 2>&1 </dev/null && exit 0; \
	  echo "apt-get could not install$$missing ($(VENV)/apt.log says why): the tests that need them are skipped."; \
	else \
	  echo "Not installed:$$missing: the tests that need them are skipped."; \
	fi
