#!/bin/sh
# Renews the lock files from pyproject.toml:
#
#   requirements.lock         everything: what tests, checks and builds need
#   requirements-demo.lock    what `make demo` needs
#   packaging/agent.lock      what a station gets      (extras opcua, modbus, sigma)
#   packaging/collector.lock  what the centre gets     (extra collector)
#
# The smaller ones hold the same versions as the first. They name packages, versions and hashes for every platform and Python we
# support, and no index: where packages come from is the business of whoever installs. `packaging/lock.sh --upgrade` takes the
# newest versions that pyproject.toml allows.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv

compile() { .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links "$@"; }

# The build backend is locked with the rest: the project is installed without looking for one.
backend=$(mktemp)
trap 'rm -f "$backend"' EXIT
printf 'hatchling>=1.27,<2\neditables>=0.5\n' >"$backend"
compile "$@" --all-extras --group dev pyproject.toml "$backend" -o requirements.lock
compile --extra demo pyproject.toml "$backend" -c requirements.lock -o requirements-demo.lock
compile --extra opcua --extra modbus --extra sigma pyproject.toml -c requirements.lock -o packaging/agent.lock
compile --extra collector pyproject.toml -c requirements.lock -o packaging/collector.lock
grep -c '==' requirements.lock requirements-demo.lock packaging/agent.lock packaging/collector.lock
