"""Shortlist every night under Airflow 3, one task a stage: put this into the folder of DAGs, change what is in capitals.

Every task gets the same flags, so each finds exactly what the one before it made. A task that is tried again skips what is
done, and a training goes on from its checkpoint. A mistake in the input (exit code 2) or a failed gate (3) would be the same
the next time: such a task fails at once.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException

PYTHON = "/srv/shortlist/.venv/bin/python"
PROJECT = "/srv/shortlist"
FLAGS = [
    "--ratings=/srv/data/ratings/until={{ ds }}",
    "--items=/srv/data/items/items.parquet",
    "--output=/srv/shortlist/output/nightly",
    "--split=temporal",
    "--refit",
]
STAGES = ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge", "publish")
NOT_AGAIN = {2: "a mistake in the input or the flags", 3: "a gate failed, and LATEST stays as it was"}


def run_stage(command: list[str]) -> None:
    """Runs a stage's command; what it says is in the task's log."""
    code = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if code in NOT_AGAIN:
        raise AirflowFailException(f"exit code {code}, {NOT_AGAIN[code]}: see the line that begins with error:")
    if code:
        raise AirflowException(f"exit code {code}: finished stages are kept")


with DAG(
    "shortlist",
    description="The top items of every user",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
) as dag:
    before = None
    for stage in STAGES:
        task = PythonOperator(
            task_id=stage,
            python_callable=run_stage,
            op_args=[[PYTHON, "-m", f"pipelines.{stage}", *FLAGS]],  # Templates in it are filled in.
        )
        if before is not None:
            before >> task
        before = task
