#!/usr/bin/env bash
# Makes the environment of the peers which serving is compared with; one that stands is left as it is.
# torch, faiss and Headrace's own dependencies come from the main environment, so that both have the same.
#   HEADRACE_SERVING_PEERS_VENV   its folder (.venv-serving-peers)
#   HEADRACE_VENV                 the main environment's (.venv), which `make setup` makes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export PIP_DISABLE_PIP_VERSION_CHECK=1
main="$(realpath -m "${HEADRACE_VENV:-.venv}")"
venv="$(realpath -m "${HEADRACE_SERVING_PEERS_VENV:-.venv-serving-peers}")"
[[ -x "$main/bin/python" ]] || {
    echo "no environment at $main: run make setup first, or set HEADRACE_VENV" >&2
    exit 1
}
wanted="$(cat benchmarks/serving_peers/{requirements.txt,setup.sh} | sha256sum | cut -d ' ' -f 1) $main"
if [[ -x "$venv/bin/python" && "$(cat "$venv/.headrace-setup" 2>/dev/null)" == "$wanted" ]]; then
    echo "set up already: $venv"
    exit
fi
"$main/bin/python" -m venv --clear "$venv"
echo '*' >"$venv/.gitignore"
"$venv/bin/python" -m pip install -qq -r benchmarks/serving_peers/requirements.txt
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# A .pth file's folder comes last on the path: what is installed here is found before the main one's.
packages "$main/bin/python" >"$(packages "$venv/bin/python")/main-environment.pth"
"$venv/bin/python" -c 'import bentoml, faiss, torch; print("bentoml", bentoml.__version__, "torch", torch.__version__)'
echo "$wanted" >"$venv/.headrace-setup"
