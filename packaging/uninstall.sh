#!/bin/sh
# Removes what install.sh installed. Configuration and state stay, so that a later installation goes on where this one stopped.
#
#   ./uninstall.sh agent|collector
#   --purge       configuration and state go as well: events that were not sent are lost
#   --root DIR    as given to install.sh
set -eu
root= role= purge=
while [ $# -gt 0 ]; do
    case $1 in
    --root) root=${2:?--root needs a folder}; shift ;;
    --purge) purge=yes ;;
    agent | collector) role=$1 ;;
    *) role= ; break ;;
    esac
    shift
done
[ -n "$role" ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 2; }
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || { echo "uninstall.sh: run it as root" >&2; exit 1; }

prefix=$root/opt/linewarden
user=linewarden
[ "$role" = agent ] || user=linewarden-$role
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now "linewarden-$role" 2>/dev/null || true
fi
rm -rf "$root/etc/systemd/system/linewarden-$role.service" "$root/etc/systemd/system/linewarden-$role.service.d"
[ -n "$root" ] || rm -f "/usr/local/bin/linewarden-$role"
rm -rf "$prefix/$role" "$prefix/bin/linewarden-$role" "$prefix/versions/$role-"*
if [ -z "$(ls -A "$prefix/bin" 2>/dev/null)" ]; then rm -rf "$prefix"; fi
if [ -n "$purge" ]; then
    rm -rf "$root/var/lib/$user" "$root/etc/linewarden/$role.toml"
    [ -n "$root" ] || userdel "$user" 2>/dev/null || true
else
    echo "Kept: $root/etc/linewarden, $root/var/lib/$user (--purge removes them)"
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
