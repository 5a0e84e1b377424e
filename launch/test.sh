#!/usr/bin/env bash
# All that a change must pass: lint, format, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/install.sh dev
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
.venv/bin/lint-imports --no-logo --no-cache
# In the order of tests/conftest.py, which has the longest first.
.venv/bin/python -m pytest -n "${EOTJAX_TEST_WORKERS:-2}" --dist loadfile \
  --no-loadscope-reorder "$@"
