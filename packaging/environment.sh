#!/bin/sh
# Makes the project's own Python environment in .venv, from a lock file that names every package with its hashes.
#
#   packaging/environment.sh demo    what `make demo` needs: the product and an embedded PostgreSQL
#   packaging/environment.sh dev     all of that, and what tests, checks and builds need
#
# A second run costs nothing: a stamp in the environment holds what it was made from (lock, pyproject, folder). When one of them
# changes, the packages are brought up to date; when Python itself is gone, the environment is made anew.
# PYTHON=/path/to/python chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

kind=${1:-dev}
venv=.venv
log=$venv/setup.log
case $kind in
demo) lock=requirements-demo.lock ;;
dev) lock=requirements.lock ;;
*)
    echo "usage: packaging/environment.sh demo|dev" >&2
    exit 2
    ;;
esac

# What an environment is made from. An environment for `dev` serves `demo` as well: the smaller lock is a part of the larger.
recipe() { { pwd && cat "$1" pyproject.toml; } | sha256sum | cut -d' ' -f1; }
ready() { [ -f "$venv/ready-$1" ] && [ "$(cat "$venv/ready-$1")" = "$(recipe "$2")" ] && "$venv/bin/python" -c '' 2>/dev/null; }
if ready dev requirements.lock || ready "$kind" "$lock"; then
    exit 0
fi

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.14 python3}; do
        if command -v "$candidate" >/dev/null 2>&1 && suitable "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# Runs a step with its output in the log; on a terminal shows that it lives, and for how long it has.
step() {
    title=$1
    shift
    began=$(date +%s)
    if [ ! -t 1 ]; then echo "  $title"; fi
    "$@" >>"$log" 2>&1 &
    child=$!
    trap 'kill $child 2>/dev/null; exit 130' INT TERM
    while [ -t 1 ] && kill -0 "$child" 2>/dev/null; do
        for mark in '|' / - '\'; do
            doing=$(tail -n 1 "$log" 2>/dev/null | cut -c1-50)
            printf '\r\033[K  %s %s  %s s  %s' "$mark" "$title" "$(($(date +%s) - began))" "$doing"
            sleep 0.2
        done
    done
    status=0
    wait "$child" || status=$?
    trap - INT TERM
    seconds=$(($(date +%s) - began))
    if [ "$status" -eq 0 ]; then
        if [ -t 1 ]; then printf '\r\033[K  done  %s (%s s)\n' "$title" "$seconds"; fi
        return 0
    fi
    if [ -t 1 ]; then printf '\r\033[K'; fi
    {
        echo "  failed: $title (exit status $status). The end of $log:"
        tail -n 15 "$log" | sed 's/^/    /'
    } >&2
    exit 1
}

if ! python=$(find_python); then
    {
        echo "Linewarden needs Python 3.11 or later, and ${PYTHON:-python3} is none."
        echo "Debian, Ubuntu: apt-get install python3 python3-venv   Fedora: dnf install python3.13   or give one: make PYTHON=/path/to/python3.11"
    } >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    {
        echo "$python cannot make environments: its modules ensurepip and venv are missing."
        echo "Debian, Ubuntu: apt-get install python$version-venv"
    } >&2
    exit 1
fi

echo "Setting up the environment in $venv (once; $("$python" --version 2>&1))"
if [ -d "$venv" ] && ! { "$venv/bin/python" -m pip --version >/dev/null 2>&1 && suitable "$venv/bin/python"; }; then
    rm -rf "$venv"
fi
mkdir -p "$venv"
: >"$log"
rm -f "$venv"/ready-*
[ -x "$venv/bin/python" ] || step "making a Python environment" "$python" -m venv "$venv"
count=$(grep -c '^[a-zA-Z0-9].*==' "$lock")
step "installing $count packages from $lock" \
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --require-hashes -r "$lock"
step "installing Linewarden itself" \
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation --no-index --editable .
recipe "$lock" >"$venv/ready-$kind"
