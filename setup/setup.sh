#!/usr/bin/env bash
# Makes the environment that everything here runs in; ends at once when it stands. `make setup` runs it.
#   HEADRACE_VENV             the environment's folder (.venv)
#   PYTHON                    the Python to make it from (python3.11)
#   HEADRACE_CACHE            where Horovod's built wheel is kept (~/.cache/headrace)
#   HEADRACE_TORCH_INDEX_URL  an index to take torch from, for example one of CPU builds
#   HEADRACE_WITH_MPI         1: Horovod with MPI too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$PWD"

export PYTHON="${PYTHON:-python3.11}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
venv="$(realpath -m "${HEADRACE_VENV:-.venv}")"
stamp="$venv/.headrace-setup"

fingerprint() { # of all that decides what the environment holds
    {
        shopt -s nullglob # an image is set up before the code is copied into it
        find requirements.lock pyproject.toml setup training/*.c -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        echo "$root" "$venv" "${HEADRACE_TORCH_INDEX_URL:-}" "${HEADRACE_WITH_MPI:-0}"
        java -version 2>&1 || true # its archive of classes is for this Java
    } | sha256sum | cut -d ' ' -f 1
}

step() { echo "[$1/7] $2"; }

in_venv() { # in_venv COMMAND...: with the environment first on the path, as if it were activated
    PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" PYTHONPATH='' "$@"
}

pip_install() { in_venv python -m pip install -qq --no-warn-conflicts "$@"; } # -qq: errors only

wanted="$(fingerprint)"
if [[ -x "$venv/bin/python" && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    echo "set up already: $venv"
    exit 0
fi
began=$SECONDS

step 1 "system packages"
bash setup/system_packages.sh

step 2 "environment $venv"
# An environment that was moved here names its old place in every script, so it is made anew.
if [[ -e "$venv/pyvenv.cfg" ]] && ! grep -qs "$venv" "$venv/bin/activate"; then
    "$PYTHON" -m venv --clear "$venv"
elif ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$PYTHON" -m venv --clear "$venv"
fi
rm -f "$stamp"
pip_install "$(grep '^pip==' requirements.lock)"

step 3 "packages of requirements.lock (some minutes the first time)"
# torch comes after the rest and with its own dependencies: the build for CUDA has many that the CPU build has not.
without_torch="$(mktemp)"
trap 'rm -f "$without_torch"' EXIT
grep -v '^torch==' requirements.lock >"$without_torch"
pip_install --no-deps -r "$without_torch"
pip_install --constraint requirements.lock ${HEADRACE_TORCH_INDEX_URL:+--index-url "$HEADRACE_TORCH_INDEX_URL"} \
    "$(grep '^torch==' requirements.lock)"

step 4 "Horovod, built here once for this torch (about five minutes on two cores)"
wheel="$(in_venv python setup/horovod_wheel.py)"
pip_install --no-deps --force-reinstall "$wheel"

step 5 "Headrace itself, editable"
# compat: the root goes on the path as it is, so a package that is added later is found without a new install.
# (setuptools warns that this mode may go one day; ours is pinned.)
PYTHONWARNINGS=ignore pip_install --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .

step 6 "Java's archive of Spark's classes: jobs start sooner"
rm -f "$venv/spark.jsa"
in_venv spark-submit --conf spark.driver.extraJavaOptions="-XX:ArchiveClassesAtExit=$venv/spark.jsa" \
    setup/spark_archive.py >/dev/null 2>&1 || true
[[ -f "$venv/spark.jsa" ]] || echo "    none was written: jobs start some seconds later" >&2

step 7 "proof: imports, and two ranks that greet each other"
compgen -G 'training/_gather*.so' >/dev/null || echo "    training/gather.c was not compiled: the feed will gather with numpy, slower" >&2
in_venv python -c 'import torch, horovod.torch, pyspark; print("    torch", torch.__version__, "pyspark", pyspark.__version__)'
ranks="$(in_venv timeout 120 horovodrun -np 2 --gloo python -c \
    'import horovod.torch as hvd; hvd.init(); print("rank", hvd.rank(), "of", hvd.size(), flush=True)' 2>&1)" || {
    printf '%s\nhorovodrun failed: its output is above\n' "$ranks" >&2
    exit 1
}
for rank in 0 1; do
    grep -q "rank $rank of 2" <<<"$ranks" || {
        printf '%s\nrank %s of 2 said nothing: the output of horovodrun is above\n' "$ranks" "$rank" >&2
        exit 1
    }
done

fingerprint >"$stamp" # anew: Java may have come with the system packages
echo "set up in $((SECONDS - began)) s: $venv"
