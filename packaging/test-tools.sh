#!/bin/sh
# Installs the programs that some tests speak to, as far as this user may, and says what is missing. Never fails: a test whose
# program is missing is skipped and says so in pytest's summary. No service is started or enabled (apt-quietly.sh).
#
#   socat                   serial lines without hardware (Modbus RTU)
#   mbpoll                  an independent Modbus client; brings libmodbus, an independent server
#   libfaketime             a clock that steps
#   journald, journalctl    a journal to read
#   node, npm               programs of other makers: node-opcua, modbus-serial, jsmodbus, winston (fetched once by the tests themselves)
#   logger                  a sender of syslog
#   openssl                 certificates for TLS
#   nginx, haproxy          proxies in front of the collector
set -u
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null 2>&1; }
has_remote() { [ -x /lib/systemd/systemd-journal-remote ] || [ -x /usr/lib/systemd/systemd-journal-remote ]; }
has_faketime() { ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; }

what_is_missing() {
    has socat || echo socat
    has mbpoll || echo mbpoll
    has_remote || echo systemd-journal-remote
    has journalctl || echo systemd
    has_faketime || echo libfaketime
    has npm || echo npm
    has logger || echo bsdutils
    has openssl || echo openssl
    has nginx || echo nginx
    has haproxy || echo haproxy
}

missing=$(what_is_missing | tr '\n' ' ')
[ -n "$missing" ] || exit 0

# Asked once a day at the most: what could not be installed an hour ago cannot be installed now.
stamp=.venv/tools-tried
if [ -n "$(find "$stamp" -mtime -1 2>/dev/null)" ] && [ "$(cat "$stamp")" = "$missing" ]; then
    echo "Not installed, and their tests are skipped: $missing"
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && has apt-get; then
    echo "Installing programs that some tests speak to: $missing"
    for package in $missing; do
        timeout 300 packaging/apt-quietly.sh "$package" >/dev/null 2>&1 ||
            { [ -n "${updated:-}" ] || timeout 120 apt-get -qq update >/dev/null 2>&1; updated=yes
              timeout 300 packaging/apt-quietly.sh "$package" >/dev/null 2>&1; } ||
            echo "  $package: not installed; its tests are skipped"
    done
else
    echo "Some tests are skipped without these programs: apt-get install $missing"
fi
missing=$(what_is_missing | tr '\n' ' ')
mkdir -p .venv && echo "$missing" >"$stamp"
