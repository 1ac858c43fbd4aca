#!/bin/sh
# Make sure that the named Debian packages are installed. As root it installs what is missing; otherwise it names it
# and exits 1. Without arguments it does nothing.
set -eu

missing=""
for package in "$@"; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing system packages:$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of package names, split on purpose
    if apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends $missing >&2; then
        exit 0
    fi
fi
echo "Missing system packages:$missing. As root: apt-get install$missing" >&2
exit 1
