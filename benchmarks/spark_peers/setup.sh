#!/usr/bin/env bash
# Makes the environments of the tools which the Spark jobs are compared with; one that stands is left as it is.
#   setup.sh ENVIRONMENT...   peers (Polars, DuckDB, pandas) or nvtabular
#   HEADRACE_SPARK_PEERS_VENV, HEADRACE_NVTABULAR_VENV  their folders (.venv-spark-peers, .venv-nvtabular)
#   HEADRACE_VENV             the main environment's (.venv), which `make setup` makes
#   PYTHON                    the Python to make them from (the main environment's)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export PIP_DISABLE_PIP_VERSION_CHECK=1
main="$(realpath -m "${HEADRACE_VENV:-.venv}")"
python="${PYTHON:-$main/bin/python}"

make_environment() { # name, folder, requirements, options of pip
    local name="$1" venv requirements="$3" wanted began=$SECONDS
    venv="$(realpath -m "$2")"
    shift 3
    wanted="$({
        sha256sum "$requirements" benchmarks/spark_peers/setup.sh
        echo "$venv" "$@"
        "$python" --version
    } | sha256sum | cut -d ' ' -f 1)"
    if [[ -x "$venv/bin/python" && "$(cat "$venv/.headrace-setup" 2>/dev/null)" == "$wanted" ]]; then
        echo "set up already: $venv"
        return
    fi
    echo "environment of $name: $venv (a minute the first time)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -qq setuptools==69.5.1 wheel
    "$venv/bin/python" -m pip install -qq --no-deps "$@" -r "$requirements"
    echo "$wanted" >"$venv/.headrace-setup"
    echo "set up in $((SECONDS - began)) s: $venv"
}

for environment in "$@"; do
    case "$environment" in
        peers)
            make_environment "Polars, DuckDB and pandas" "${HEADRACE_SPARK_PEERS_VENV:-.venv-spark-peers}" \
                benchmarks/spark_peers/requirements.txt
            ;;
        nvtabular)
            # Its packages build with the setuptools that is there, and name a CUDA package that the CPU has no use for.
            make_environment NVTabular "${HEADRACE_NVTABULAR_VENV:-.venv-nvtabular}" \
                benchmarks/spark_peers/requirements-nvtabular.txt --no-build-isolation
            ;;
        *)
            echo "no environment $environment: peers or nvtabular" >&2
            exit 2
            ;;
    esac
done
