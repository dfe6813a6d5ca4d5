#!/bin/sh
# Installs Debian packages without starting or enabling any service that they bring: packaging/apt-quietly.sh PACKAGE…
#
# Debian's packages start their services and enable them for the next boot. A test suite that wants the program nginx must not turn a
# computer into a web server. So while apt works, policy-rc.d says no to every start (with and without systemd), and whatever was enabled
# meanwhile is disabled again, in the packages' own records too, so that an upgrade does not enable it later. What was enabled before stays.
# ROOT=DIR stands for / in the tests of this script.
set -u
root=${ROOT:-}
policy=$root/usr/sbin/policy-rc.d
kept=

# Links of systemd and of System V that start something.
enabled() {
    find "$root/etc/systemd/system" -path '*.wants/*' -o -path '*.requires/*' 2>/dev/null
    find "$root"/etc/rc[S2345].d -name 'S*' 2>/dev/null
}

restore() {
    rm -f "$policy"
    [ -z "$kept" ] || mv "$kept" "$policy"
    rm -f "$before"
}

before=$(mktemp) || exit 1
enabled | sort >"$before"
if [ -e "$policy" ]; then
    kept=$policy.before-linewarden
    mv "$policy" "$kept" || exit 1
fi
trap restore EXIT
trap 'exit 130' INT TERM
mkdir -p "$(dirname "$policy")"
printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" || exit 1

status=0
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" || status=$?

enabled | sort | comm -13 "$before" - | while read -r link; do
    name=${link##*/}
    case $link in
    "$root"/etc/rc*) [ -n "$root" ] || update-rc.d "${name#S[0-9][0-9]}" disable >/dev/null 2>&1 ;;
    *) [ -n "$root" ] || deb-systemd-helper disable "$name" >/dev/null 2>&1 ;;
    esac
    rm -f "$link"
done
exit "$status"
