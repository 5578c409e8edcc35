#!/usr/bin/env bash
# Makes the environments of the peers which training is compared with; one that stands is left as it is.
# torch, and Horovod that was built for it, they take from the main environment, so that all peers have the same.
#   setup.sh ENVIRONMENT...         estimator (Horovod's TorchEstimator) or torchrec; DDP runs in the main environment
#   HEADRACE_TRAINING_PEERS_VENV    the estimator's folder (.venv-training-peers)
#   HEADRACE_TORCHREC_VENV          TorchRec's (.venv-torchrec)
#   HEADRACE_VENV                   the main environment's (.venv), which `make setup` makes
#   PYTHON                          the Python to make them from (the main environment's)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export PIP_DISABLE_PIP_VERSION_CHECK=1
main="$(realpath -m "${HEADRACE_VENV:-.venv}")"
python="${PYTHON:-$main/bin/python}"

[[ -x "$main/bin/python" ]] || {
    echo "no environment at $main: run make setup first, or set HEADRACE_VENV" >&2
    exit 1
}
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
main_packages="$(site_packages "$main/bin/python")"

make_environment() { # name, folder, requirements, proof (Python)
    local name="$1" venv requirements="$3" proof="$4" wanted began=$SECONDS
    venv="$(realpath -m "$2")"
    wanted="$({
        sha256sum "$requirements" benchmarks/training_peers/setup.sh
        echo "$venv" "$main_packages"
        "$python" --version
    } | sha256sum | cut -d ' ' -f 1)"
    if [[ -x "$venv/bin/python" && "$(cat "$venv/.headrace-setup" 2>/dev/null)" == "$wanted" ]]; then
        echo "set up already: $venv"
        return
    fi
    echo "environment of $name: $venv (a minute or two the first time)"
    "$python" -m venv --clear "$venv"
    echo '*' >"$venv/.gitignore"
    "$venv/bin/python" -m pip install -qq --no-deps setuptools==69.5.1 wheel # petastorm and its likes come as sources
    "$venv/bin/python" -m pip install -qq --no-deps --no-build-isolation -r "$requirements"
    # A .pth file's folder comes last on the path: all that is pinned here is found before the main one's.
    echo "$main_packages" >"$(site_packages "$venv/bin/python")/torch-of-main-environment.pth"
    "$venv/bin/python" -W ignore -c "$proof"
    echo "$wanted" >"$venv/.headrace-setup"
    echo "set up in $((SECONDS - began)) s: $venv"
}

for environment in "$@"; do
    case "$environment" in
        estimator)
            make_environment "Horovod's TorchEstimator" "${HEADRACE_TRAINING_PEERS_VENV:-.venv-training-peers}" \
                benchmarks/training_peers/requirements-estimator.txt '
import numpy, petastorm.pytorch, pyarrow, pyspark, torch
from horovod.spark.torch import TorchEstimator
assert pyarrow.__version__ == "14.0.2", pyarrow.__file__
assert torch.from_numpy(numpy.arange(3)).sum() == 3
print("    pyspark", pyspark.__version__, "pyarrow", pyarrow.__version__, "torch", torch.__version__)'
            ;;
        torchrec)
            make_environment TorchRec "${HEADRACE_TORCHREC_VENV:-.venv-torchrec}" \
                benchmarks/training_peers/requirements-torchrec.txt '
import torch, torchrec
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(3, dtype=torch.int64))
print("    torchrec", torchrec.__version__, "torch", torch.__version__)'
            ;;
        *)
            echo "no environment $environment: estimator or torchrec" >&2
            exit 2
            ;;
    esac
done
