#!/usr/bin/env bash
# Makes requirements.lock anew from requirements.in: what pip resolves today, in an environment of its own.
# petastorm goes in with --no-deps (its setuptools<70 and torch's setuptools>=77.0.3 cannot both hold); all
# that it declares beside that stands in requirements.in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3.11}" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@"; }

grep -v '^petastorm==' requirements.in >"$scratch/resolved.in"
grep '^petastorm==' requirements.in >"$scratch/no-deps.in"
pip install --quiet --upgrade pip
pip install --quiet -r "$scratch/resolved.in"
pip install --quiet --no-deps -r "$scratch/no-deps.in"

# torch's local part (+cpu, +cu130) and its CUDA packages depend on the machine: setup.sh leaves them to torch.
{
    sed -n '/^#/!q;p' requirements.lock
    pip freeze --all | sed 's/^\(torch==[^+]*\)+.*/\1/' | grep -vE '^(nvidia-|cuda-|triton==|wheel==)' | LC_ALL=C sort -f
} >"$scratch/requirements.lock"
cp "$scratch/requirements.lock" requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) pins. pip check says:"
pip check || true
