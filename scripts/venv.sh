#!/bin/sh
# Build a virtual environment with pip: venv.sh PYTHON FOLDER.
#
# Debian ships Python without ensurepip unless python3-venv is installed. In order: venv; as root, install
# python3-venv and use it; virtualenv; uv; the system's own pip. Each is only tried when the one before cannot.
set -eu

python=$1
folder=$2

fail() {
    echo "$*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "No '$python' on PATH. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 …"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Rearguard needs Python 3.11 or newer; '$python' is $("$python" -V 2>&1). Name another: make PYTHON=python3.12 …"

# A run that was interrupted may have left a usable environment; anything less is built anew.
if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
rm -rf "$folder"

has_ensurepip() {
    "$python" -c 'import venv; from ensurepip import version' >/dev/null 2>&1
}

if ! has_ensurepip && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    sh "$(dirname "$0")/system-packages.sh" python3-venv || true
fi
if has_ensurepip && "$python" -m venv "$folder"; then
    exit 0
fi
rm -rf "$folder"

if command -v virtualenv >/dev/null 2>&1; then
    virtualenv --quiet --python "$python" "$folder" && exit 0
    rm -rf "$folder"
fi
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --seed --python "$python" "$folder" && exit 0
    rm -rf "$folder"
fi
if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --without-pip "$folder" &&
        "$python" -m pip --python "$folder/bin/python" install --quiet pip && exit 0
    rm -rf "$folder"
fi

version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
fail "Cannot build a virtual environment: '$python' has no ensurepip.
Install the Debian package python3-venv (or python$version-venv), for instance: sudo apt-get install python3-venv
Then run make again. virtualenv or uv on PATH will do as well."
