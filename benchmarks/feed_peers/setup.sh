#!/usr/bin/env bash
# Makes the environment of the loaders which the feed is compared with; ends at once when it stands.
# It is one of its own because mosaicml-streaming wants numpy < 2.2. torch it takes from the main environment, so that
# all loaders have the same and it is not downloaded again.
#   HEADRACE_PEERS_VENV  the environment's folder (.venv-peers)
#   HEADRACE_VENV        the main environment's (.venv), which `make setup` makes
#   PYTHON               the Python to make it from (the main environment's)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export PIP_DISABLE_PIP_VERSION_CHECK=1
requirements="benchmarks/feed_peers/requirements.txt"
main="$(realpath -m "${HEADRACE_VENV:-.venv}")"
venv="$(realpath -m "${HEADRACE_PEERS_VENV:-.venv-peers}")"
python="${PYTHON:-$main/bin/python}"
stamp="$venv/.headrace-setup"

[[ -x "$main/bin/python" ]] || {
    echo "no environment at $main: run make setup first, or set HEADRACE_VENV" >&2
    exit 1
}
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
main_packages="$(site_packages "$main/bin/python")"

wanted="$({
    sha256sum "$requirements" benchmarks/feed_peers/setup.sh
    echo "$venv" "$main_packages"
    "$python" --version
} | sha256sum | cut -d ' ' -f 1)"
if [[ -x "$venv/bin/python" && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    echo "set up already: $venv"
    exit 0
fi
began=$SECONDS
echo "environment of the other loaders: $venv (a minute or two the first time)"
"$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install -qq --no-deps -r "$requirements"
# A .pth file's folder comes last on the path: numpy and all else that is pinned here is found before the main one's.
echo "$main_packages" >"$(site_packages "$venv/bin/python")/torch-of-main-environment.pth"
"$venv/bin/python" -c '
import numpy, torch
assert numpy.__version__.startswith("2.1."), numpy.__file__
assert torch.from_numpy(numpy.arange(3)).sum() == 3
print("    numpy", numpy.__version__, "torch", torch.__version__)'

echo "$wanted" >"$stamp"
echo "set up in $((SECONDS - began)) s: $venv"
