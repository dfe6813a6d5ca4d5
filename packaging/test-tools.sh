#!/bin/sh
# Installs the programs that some tests speak to, as far as this user may, and says what is missing. Never fails: a test whose
# program is missing is skipped and says so in pytest's summary.
#
#   socat                   serial lines without hardware (Modbus RTU)
#   mbpoll                  an independent Modbus client; brings libmodbus, an independent server
#   faketime                a clock that steps
#   journald, journalctl    a journal to read
set -u
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null 2>&1; }
has_remote() { [ -x /lib/systemd/systemd-journal-remote ] || [ -x /usr/lib/systemd/systemd-journal-remote ]; }

missing=
has socat || missing="$missing socat"
has mbpoll || missing="$missing mbpoll"
has_remote || missing="$missing systemd-journal-remote"
[ -n "$missing" ] || exit 0

# Asked once a day at the most: what could not be installed an hour ago cannot be installed now.
stamp=.venv/tools-tried
if [ -n "$(find "$stamp" -mtime -1 2>/dev/null)" ] && [ "$(cat "$stamp")" = "$missing" ]; then
    echo "Not installed, and their tests are skipped:$missing"
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && has apt-get; then
    echo "Installing programs that some tests speak to:$missing"
    for package in $missing; do
        DEBIAN_FRONTEND=noninteractive timeout 120 apt-get -qq -y --no-install-recommends install "$package" >/dev/null 2>&1 ||
            { [ -n "${updated:-}" ] || timeout 120 apt-get -qq update >/dev/null 2>&1; updated=yes
              DEBIAN_FRONTEND=noninteractive timeout 120 apt-get -qq -y --no-install-recommends install "$package" >/dev/null 2>&1; } ||
            echo "  $package: not installed; its tests are skipped"
    done
else
    echo "Some tests are skipped without these programs: apt-get install$missing"
fi
missing=
has socat || missing="$missing socat"
has mbpoll || missing="$missing mbpoll"
has_remote || missing="$missing systemd-journal-remote"
mkdir -p .venv && echo "$missing" >"$stamp"
