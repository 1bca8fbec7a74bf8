# One virtual environment, exact parts, and nothing outside this folder. Needs Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

# Given on the command line, as in `make test DATABASE_URL=postgres://…`, these reach the programs.
export DATABASE_URL REDIS_URL DATA_DIR PORT
unexport MAKEFLAGS MAKELEVEL MFLAGS
# An empty variable means the default, not an empty value.
ifeq ($(strip $(DATABASE_URL)),)
unexport DATABASE_URL
endif
ifeq ($(strip $(REDIS_URL)),)
unexport REDIS_URL
endif
ifeq ($(strip $(DATA_DIR)),)
unexport DATA_DIR
endif
ifeq ($(strip $(PORT)),)
unexport PORT
endif

.DEFAULT_GOAL := help
.PHONY: help run test faults chaos bench lint pins venv parts parts-dev

help:
	@echo "make run    everything on this machine, then a demo (PORT, DATA_DIR)"
	@echo "make test   every test, on SQLite or on DATABASE_URL=postgres://…"
	@echo "make faults every fault of the fault suite, on both databases (RESUME=1, SHARE=1/3 SEED=7)"
	@echo "make chaos  faults at random (SECONDS=600 SEED=1)"
	@echo "make bench  what bench/ measures, as tables, pictures and JSON (BENCH=poll_cost SIZE=small)"
	@echo "make lint   style, types, arrows between packages, migrations, deployment checks, API schema"
	@echo "make pins   requirements*.in compiled into requirements*.txt"

run: parts
	@exec $(BIN)/python manage.py up --with-parent

# Four processes for two cores: the whole installations of tests/end_to_end wait more than they work.
test: parts-dev
	@exec $(BIN)/python -m pytest --numprocesses 4 --dist worksteal -m 'not faults and not chaos' $(PYTEST_ARGS)

# Both databases in one run; each starts what it needs. RESUME=1 goes on where the last run was stopped, SHARE=1/3 takes a
# third of the table by SEED.
faults: parts-dev
	@FAULTS_RESUME=$(RESUME) FAULTS_SHARE=$(SHARE) FAULTS_SEED=$(SEED) \
		exec $(BIN)/python -m pytest tests/faults -m faults --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

chaos: parts-dev
	@CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) exec $(BIN)/python -m pytest tests/faults -m chaos --capture no $(PYTEST_ARGS)

# One question after the other; fails if a number falls short of what is required. SIZE=small is a quick look.
bench: parts-dev
	@SIZE=$(SIZE) exec $(BIN)/python -m bench.run $(BENCH)

# What a production environment sets, with keys that open nothing.
PRODUCTION = DEBUG=off ALLOWED_HOSTS=fleetsync.example.com REDIS_URL=redis://:lint@localhost:6379/0 \
	SECRET_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(50))') \
	ENCRYPTION_KEYS=$$($(BIN)/python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')

lint: parts-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict manage.py fleetsync repos workers tests bench
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check
	$(PRODUCTION) $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(BIN)/python manage.py spectacular --validate --fail-on-warn --file /dev/null

pins: parts-dev
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make pins" -q requirements.in -o requirements.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make pins" -q requirements-dev.in -o requirements-dev.txt

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fleetsync needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 …" >&2; exit 1; }
	@command -v git >/dev/null || { echo "fleetsync needs git: install it first." >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { \
		echo "Making a virtual environment in $(VENV)"; \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module does not work; on Debian: apt install python3-venv" >&2; exit 1; }; }

# A copy of what was installed last says whether to install: true whatever git does to the files' times.
parts: venv
	@cmp -s requirements.txt $(VENV)/requirements.txt || { \
		echo "Installing requirements.txt" && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt && \
		cp requirements.txt $(VENV)/requirements.txt; }

parts-dev: venv
	@cmp -s requirements-dev.txt $(VENV)/requirements-dev.txt && cmp -s requirements.txt $(VENV)/requirements.txt || { \
		echo "Installing requirements-dev.txt" && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt && \
		cp requirements.txt requirements-dev.txt $(VENV)/; }
