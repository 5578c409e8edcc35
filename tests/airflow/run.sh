#!/usr/bin/env bash
# A wheel on MovieLens 100K turned by Airflow, in an environment of its own: once on the log it begins with, once with
# nothing new, once on what people did at its server, and once with a gate that refuses. HEADRACE_PYTHON: the Python that
# Headrace is installed in.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
scratch="${AIRFLOW_SCRATCH:-$(mktemp -d -t headrace-airflow-XXXXXX)}"
venv="${AIRFLOW_VENV:-$scratch/venv}"
python="${HEADRACE_PYTHON:-python}"
if [[ ! -x "$venv/bin/airflow" ]]; then
    "$python" -m venv "$venv"
    # Airflow's client sends JSON without saying so, which FastAPI from 0.132 on takes for text.
    "$venv/bin/pip" install --quiet --disable-pip-version-check apache-airflow==3.0.6 'fastapi==0.116.*'
fi

export AIRFLOW_HOME="$scratch/home" AIRFLOW__CORE__DAGS_FOLDER="$scratch/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False
export HEADRACE_WHEEL="$scratch/wheel" PYTHONPATH="$here"
export HEADRACE="${HEADRACE:-$(command -v "$python") -m pipelines.cli}"
mkdir -p "$AIRFLOW__CORE__DAGS_FOLDER"
cp "$here/pipelines/airflow/headrace_dag.py" "$AIRFLOW__CORE__DAGS_FOLDER/"
if [[ ! -f "$HEADRACE_WHEEL/wheel.yaml" ]]; then
    "$python" -m pipelines.cli turn --wheel "$HEADRACE_WHEEL" --new ml-100k
    sed -i -e 's/epochs=8/epochs=2/' -e 's/window_hours: 24 /window_hours: 0.005 /' "$HEADRACE_WHEEL/wheel.yaml"
    "$python" -m pipelines.cli data ml-100k --to "$HEADRACE_WHEEL/raw"
fi

# Airflow's own Python does not see ours.
airflow() { env -u PYTHONPATH "$venv/bin/airflow" "$@"; }
turn() { # turn DATE STATE-OF-THE-RUN
    airflow dags test headrace_turn "$1" >"$scratch/$1.txt" 2>&1 || true
    grep -q "Marking run .* $2" "$scratch/$1.txt" || { tail -50 "$scratch/$1.txt"; exit 1; }
}
airflow db migrate >"$scratch/migrate.txt" 2>&1
airflow dags list-import-errors

turn 2024-01-02 successful
grep -q '"id": *"0001"' "$HEADRACE_WHEEL/champion.json"
turn 2024-01-03 successful # nothing new: skipped after ingest
[[ ! -e "$HEADRACE_WHEEL/generations/0002" ]]
"$python" -m tests.airflow.people "$HEADRACE_WHEEL" 20
turn 2024-01-04 successful
grep -q '"id": *"0002"' "$HEADRACE_WHEEL/champion.json"
for report in drift/drift.json skew/skew.json champion-retriever.json; do
    [[ -s "$HEADRACE_WHEEL/generations/0002/$report" ]]
done
grep -q '"joined": *120' "$HEADRACE_WHEEL/served/manifest.json"
# Other settings are something new; nobody can serve so many rows.
sed -i -e 's/epochs=2/epochs=1/' -e 's/^gate:/gate:\n  min_rows: 1000000000/' "$HEADRACE_WHEEL/wheel.yaml"
turn 2024-01-05 failed
grep -q '"outcome": "refused"' "$HEADRACE_WHEEL/generations/0003/turn.json"
grep -q '"id": *"0002"' "$HEADRACE_WHEEL/champion.json"
echo "airflow: a turn promoted, one with nothing new skipped, one on what was served promoted, one refused; $scratch"
