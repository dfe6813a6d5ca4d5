#!/bin/sh
# Builds into dist/: the wheel, the source archive, a bundle for computers without internet, and bills of materials (CycloneDX).
#
# The bundle holds the wheel, every package it needs for each Python in PYTHONS (checked against the hashes of the lock), the units,
# and install.sh / uninstall.sh. It is made for this computer's processor (ARCH=aarch64 for another) and any Linux with glibc ≥ 2.28.
# At the end it is tried: installed twice into a scratch folder with no index at hand, run, and removed.
set -eu
cd "$(dirname "$0")/.."
ARCH=${ARCH:-$(uname -m)}
PYTHONS=${PYTHONS:-3.11 3.12 3.13}
python=$PWD/.venv/bin/python

say() { printf '  %s\n' "$*"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

rm -rf dist
"$python" -m hatchling build -d dist >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
wheel=$(ls dist/linewarden-*.whl)
version=$(basename "$wheel" | cut -d- -f2)
say "wheel and source archive of $version"

name=linewarden-$version-linux-$ARCH
bundle=$scratch/$name
mkdir -p "$bundle/wheelhouse" "$bundle/systemd" "$bundle/etc"
cp "$wheel" "$bundle/wheelhouse/"
cp packaging/install.sh packaging/uninstall.sh packaging/agent.lock packaging/collector.lock LICENSE README.md CHANGELOG.md "$bundle/"
cp packaging/*.example.toml "$bundle/etc/"
cp -r packaging/proxy "$bundle/"
cp systemd/*.service systemd/*.conf "$bundle/systemd/"

for release in $PYTHONS; do
    say "packages for Python $release"
    for role in agent collector; do
        "$python" packaging/pins.py packaging/$role.lock "$release" >"$scratch/$role.txt"
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
            --python-version "$release" --implementation cp --platform "manylinux_2_28_$ARCH" --platform "manylinux_2_17_$ARCH" \
            --platform "manylinux2014_$ARCH" --platform "manylinux_2_12_$ARCH" --platform "manylinux1_$ARCH" \
            --dest "$bundle/wheelhouse" -r "$scratch/$role.txt" >"$scratch/log" 2>&1 || { tail -n 20 "$scratch/log" >&2; exit 1; }
    done
done
echo "$PYTHONS" >"$bundle/pythons"
(cd "$bundle" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner -czf "dist/$name.tar.gz" "$name"
say "bundle $name.tar.gz ($(du -h "dist/$name.tar.gz" | cut -f1))"

release=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $PYTHONS " in *" $release "*) known=yes ;; *) known= ;; esac
if [ "$ARCH" != "$(uname -m)" ] || [ -z "$known" ]; then
    say "not tried here: it is for $ARCH and Python $PYTHONS, this is $(uname -m) and Python $release"
else
    mkdir "$scratch/try" && tar -C "$scratch/try" -xzf "dist/$name.tar.gz"
    root=$scratch/root
    for role in agent collector agent; do
        PYTHON=$python PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= "$scratch/try/$name/install.sh" --root "$root" $role >"$scratch/log" 2>&1 ||
            { cat "$scratch/log" >&2; exit 1; }
        mkdir -p "$root/var/lib/linewarden" && echo kept >"$root/var/lib/linewarden/state"
    done
    for role in agent collector; do
        "$root/opt/linewarden/bin/linewarden-$role" --help >/dev/null
    done
    # What is in it, with licences, for whoever asks (CycloneDX): read from the installation itself, not from what was meant.
    for role in agent collector; do
        "$python" -m cyclonedx_py environment --output-reproducible --of JSON -o "dist/linewarden-$version-$role.cdx.json" \
            "$(readlink -f "$root/opt/linewarden/bin/linewarden-$role" | sed 's|/bin/[^/]*$|/bin/python|')" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
    done
    say "bills of materials: linewarden-$version-agent.cdx.json, linewarden-$version-collector.cdx.json"
    "$python" packaging/licences.py dist/linewarden-"$version"-*.cdx.json >"dist/linewarden-$version-licences.txt"
    say "pins and licences: linewarden-$version-licences.txt"
    # Known weaknesses are looked up where somebody may ask for them: a list of today is of no use tomorrow.
    if "$python" -m pip_audit --version >/dev/null 2>&1; then
        "$python" -m pip_audit --require-hashes --disable-pip -r packaging/agent.lock -r packaging/collector.lock && say "advisories: none" || say "advisories: see above"
    else
        say "advisories were not looked up: pip-audit is not installed here (pip install pip-audit, then again)"
    fi
    "$scratch/try/$name/uninstall.sh" --root "$root" agent >/dev/null
    [ ! -e "$root/opt/linewarden/agent" ] && [ "$(cat "$root/var/lib/linewarden/state")" = kept ]
    say "tried: installs without an index, again over itself, runs, and goes; the state stays"
fi
ls dist
