#!/bin/sh
# Installs Linewarden from this bundle, without internet.
#
#   ./install.sh agent        on a line or station computer (the default)
#   ./install.sh collector    at the centre, beside or in front of PostgreSQL
#   --root DIR                into DIR instead of /, without users and services: to see what it does
#
# Running it again repairs; running a newer bundle's upgrades. Each version gets an environment of its own under
# /opt/linewarden/versions, and the switch is one rename, so that an upgrade that fails leaves the old version running. The version
# before is kept for going back. Configuration (/etc/linewarden) and state (/var/lib/linewarden) are never touched once they exist.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root= role=agent
while [ $# -gt 0 ]; do
    case $1 in
    --root) root=${2:?--root needs a folder}; shift ;;
    agent | collector) role=$1 ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 2 ;;
    esac
    shift
done
fail() { echo "install.sh: $*" >&2; exit 1; }
say() { echo "  $*"; }

[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "this writes to /opt and /etc: run it as root (sudo ./install.sh $role)"
[ -z "$root" ] || { mkdir -p "$root" && root=$(cd "$root" && pwd); }
(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS) || fail "the bundle is damaged: fetch it again"

find_python() {
    for release in $(cat "$here/pythons"); do
        for candidate in ${PYTHON:-"python$release" python3}; do
            command -v "$candidate" >/dev/null 2>&1 || continue
            [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$release" ] || continue
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null || { lacking=$release; continue; }
            command -v "$candidate"
            return 0
        done
    done
    [ -z "${lacking:-}" ] || echo "Python $lacking is here but cannot make environments: apt-get install python$lacking-venv" >&2
    return 1
}
python=$(find_python) || fail "no suitable Python found. This bundle is made for Python $(sed 's/ /, /g' "$here/pythons")."

wheel=$(ls "$here"/wheelhouse/linewarden-*.whl)
version=$(basename "$wheel" | cut -d- -f2)
prefix=$root/opt/linewarden
target=$prefix/versions/$role-$version
if [ "$(readlink "$prefix/$role" 2>/dev/null)" = "versions/$role-$version" ]; then
    target=$target-again$(date +%s)
fi
echo "Installing the Linewarden $role $version into $prefix"
mkdir -p "$prefix/versions" "$prefix/bin" "$prefix/share"
rm -rf "$target"
trap 'rm -rf "$target"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$target"
pip() { "$target/bin/python" -m pip --disable-pip-version-check --quiet --isolated "$@"; }
pip install --no-index --find-links "$here/wheelhouse" --no-deps --require-hashes --only-binary=:all: -r "$here/$role.lock"
pip install --no-index --no-deps "$wheel"
"$target/bin/linewarden-$role" --help >/dev/null || fail "the installed program does not start; nothing was changed"

previous=$(readlink "$prefix/$role" 2>/dev/null || true)
ln -s "versions/$(basename "$target")" "$prefix/$role.new"
mv -T "$prefix/$role.new" "$prefix/$role"
trap - EXIT
ln -sfn "../$role/bin/linewarden-$role" "$prefix/bin/linewarden-$role"
cp "$here/README.md" "$here/LICENSE" "$here/CHANGELOG.md" "$prefix/share/"
for old in "$prefix/versions/$role-"*; do
    case versions/$(basename "$old") in "versions/$(basename "$target")" | "$previous") ;; *) rm -rf "$old" ;; esac
done
say "program: $prefix/bin/linewarden-$role"

user=linewarden
[ "$role" = agent ] || user=linewarden-$role
if [ -z "$root" ] && ! getent passwd "$user" >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir "/var/lib/$user" --shell /usr/sbin/nologin "$user"
    say "user: $user"
fi

config=$root/etc/linewarden/$role.toml
mkdir -p "$root/etc/linewarden"
mkdir -p -m 0700 "$root/etc/linewarden/secrets"
fresh=
if [ ! -e "$config" ]; then
    install -m 640 "$here/etc/$role.example.toml" "$config"
    fresh=yes
    say "configuration: $config (an example: edit it)"
fi
install -m 644 "$here/etc/$role.example.toml" "$prefix/share/"
[ -n "$root" ] || chown "root:$user" "$config"

units=$root/etc/systemd/system
mkdir -p "$units"
install -m 644 "$here/systemd/linewarden-$role.service" "$units/"
[ -n "$root" ] || ln -sfn "$prefix/bin/linewarden-$role" "/usr/local/bin/linewarden-$role"
release=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${release:-0}" -ge 254 ]; then
    mkdir -p "$units/linewarden-$role.service.d"
    install -m 644 "$here/systemd/restart-backoff.conf" "$units/linewarden-$role.service.d/"
fi
say "unit: $units/linewarden-$role.service"

if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -z "$fresh" ]; then systemctl try-restart "linewarden-$role"; fi
fi
if [ -n "$fresh" ]; then
    echo "Next:"
    if [ "$role" = agent ]; then
        echo "  1. edit $config: the collector's address, and what to read"
        echo "  2. linewarden-agent enroll --config $config --collector URL --token-file FILE   (linewarden-collector token create makes one)"
        echo "  3. linewarden-agent check --config $config"
    else
        echo "  1. edit $config: the database's address"
        echo "  2. linewarden-collector migrate --config $config"
        echo "  3. linewarden-collector token create --help: a token for each agent; key create --help: a key for each user"
    fi
    echo "  4. systemctl enable --now linewarden-$role"
fi
