#!/usr/bin/env bash
# Sees to what pip cannot bring: Java 17 (Spark), g++, make and CMake (Horovod), Python's headers and venv.
# Installs what is missing by apt when root; otherwise names it all in one message and exits with 2.
set -euo pipefail

python="${PYTHON:-python3.11}"
missing=() # what a person calls it
packages=() # what apt calls it

need() { # need WHAT PACKAGE: note that WHAT is missing and PACKAGE brings it
    missing+=("$1")
    packages+=("$2")
}

java_major() { # 17 of: openjdk version "17.0.15"
    local java=java
    [[ -n "${JAVA_HOME:-}" && -x "$JAVA_HOME/bin/java" ]] && java="$JAVA_HOME/bin/java"
    "$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1
}

find_missing() {
    missing=()
    packages=()
    local major
    major="$(java_major || true)"
    [[ "${major:-0}" -ge 17 ]] || need "Java 17 or newer" openjdk-17-jre-headless
    command -v g++ >/dev/null || need "g++" g++
    command -v make >/dev/null || need "make" make
    command -v cmake >/dev/null || need "CMake" cmake
    local include
    include="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
    [[ -f "$include/Python.h" ]] || need "Python's headers ($include/Python.h)" "$(python_package dev)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need "Python's venv and ensurepip" "$(python_package venv)"
}

python_package() { # python3.11-dev, or python3-dev where $PYTHON is the distribution's plain python3
    "$python" -c 'import sys; print("python{}.{}-{}".format(*sys.version_info[:2], sys.argv[1]))' "$1"
}

as_text() {
    local joined
    joined="$(printf '%s, ' "$@")"
    echo "${joined%, }"
}

if ! command -v "$python" >/dev/null; then
    echo "Python 3.11 or 3.12 is needed and '$python' is not there: apt-get install python3.11 python3.11-venv python3.11-dev," \
        "or name yours: PYTHON=/path/to/python3.12 make setup" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
    echo "'$python' is $("$python" --version), Headrace runs on Python 3.11 and 3.12:" \
        "name one: PYTHON=/path/to/python3.11 make setup" >&2
    exit 2
fi

find_missing
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ "$(id -u)" -eq 0 ]] && command -v apt-get >/dev/null; then
    echo "    installing by apt: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    find_missing
    [[ ${#missing[@]} -eq 0 ]] && exit 0
fi
echo "missing on this machine: $(as_text "${missing[@]}")." >&2
echo "Install and run 'make setup' again: sudo apt-get install ${packages[*]}" >&2
exit 2
