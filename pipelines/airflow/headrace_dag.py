"""A turn of a wheel as an Airflow 3 DAG, a task a step: copy this file into your dags folder.

What the workers need in their environment: HEADRACE_WHEEL, the wheel's folder, which they share; and HEADRACE, the
command, where `headrace` is not on their path. A task that is run again goes on with its step. Where nothing is new,
what comes after `ingest` is skipped; a candidate that the gate refuses fails the task `gate`, and is not promoted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, chain

STEPS = (
    "seed",
    "land",
    "feedback",
    "ingest",
    "prepare",
    "drift",
    "skew",
    "retriever",
    "ranker",
    "evaluate",
    "release",
    "estimate",
    "gate",
    "promote",
)
NOT_UNDER_WAY = 99
"""What `headrace turn --only STEP` ends with where there is no turn to go on with."""

with DAG(
    dag_id="headrace_turn",
    description="Feedback to promoted release",
    schedule="@daily",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # a wheel turns once at a time
    tags=["headrace"],
) as dag:
    chain(
        *(
            BashOperator(
                task_id=step,
                bash_command=f'${{HEADRACE:-headrace}} turn --wheel "$HEADRACE_WHEEL" --only {step}',
                skip_on_exit_code=NOT_UNDER_WAY,
                append_env=True,
                # The gate would say the same again.
                retries=0 if step == "gate" else 2,
                retry_delay=timedelta(minutes=1),
            )
            for step in STEPS
        )
    )
