"""Manifests for Kubeflow's operators: held against golden files, and against Kubernetes's schemas where they come."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cli

GOLDEN = Path(__file__).parent / "golden"
COMMON = ("--image", "registry.example/headrace:1.0", "--namespace", "ml", "--volume-claim", "data:/data")
COMMAND = ("--", "train", "--snapshot", "/data/s", "--run", "/data/r", "--set", "loss.heads={label: 1.0}")
ASKED = {
    "mpijob": ("--ranks", "4", "--gpus-per-rank", "1", "--cpu", "8", "--memory", "32Gi", "--secret-volume", "s3:/s3"),
    "pytorchjob": ("--ranks", "3", "--secret-env", "s3"),
}
# By the operators' own definitions of the two kinds; the rest of a job is pods.
SPEC = {
    "mpijob": {"slotsPerWorker", "mpiImplementation", "sshAuthMountPath", "launcherCreationPolicy", "runPolicy"}
    | {"mpiReplicaSpecs"},
    "pytorchjob": {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"},
}
REPLICAS = {"mpijob": "mpiReplicaSpecs", "pytorchjob": "pytorchReplicaSpecs"}
KINDS = pytest.mark.parametrize("kind", ASKED)


def manifest(capsys: pytest.CaptureFixture[str], kind: str, *more: str) -> str:
    assert cli.main(["manifest", "--kind", kind, *COMMON, *ASKED[kind], *more, *COMMAND]) == 0
    return capsys.readouterr().out


def replicas(job: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = job["spec"][REPLICAS[kind]]
    return found


def containers(job: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for replica in replicas(job, kind).values():
        yield from replica["template"]["spec"]["containers"]


@KINDS
def test_a_manifest_is_the_same_every_time_and_yaml_without_aliases(capsys, kind):
    text = manifest(capsys, kind)
    assert text == (GOLDEN / f"{kind}.yaml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)
    assert yaml.safe_load(yaml.safe_dump(job)) == job
    assert "&id" not in text


@KINDS
def test_a_job_has_the_fields_that_its_operator_knows(capsys, kind):
    job = yaml.safe_load(manifest(capsys, kind))
    assert {*job} == {"apiVersion", "kind", "metadata", "spec"}
    assert {*job["spec"]} == SPEC[kind]
    assert {*job["spec"]["runPolicy"]} <= {"backoffLimit", "cleanPodPolicy"}
    for replica in replicas(job, kind).values():
        assert {*replica} == {"replicas", "restartPolicy", "template"}


def test_as_many_pods_as_ranks_and_a_gpu_only_where_a_rank_is(capsys):
    job = yaml.safe_load(manifest(capsys, "mpijob"))
    launcher, worker = (replicas(job, "mpijob")[name] for name in ("Launcher", "Worker"))
    assert (launcher["replicas"], worker["replicas"]) == (1, 4)
    limits = [one["template"]["spec"]["containers"][0]["resources"]["limits"] for one in (launcher, worker)]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, 1]
    job = yaml.safe_load(manifest(capsys, "pytorchjob"))
    assert [one["replicas"] for one in replicas(job, "pytorchjob").values()] == [1, 2]
    alone = yaml.safe_load(manifest(capsys, "pytorchjob", "--ranks", "1"))
    assert [*replicas(alone, "pytorchjob")] == ["Master"]


@KINDS
def test_pods_have_no_rights_and_manifests_only_names_of_secrets(capsys, kind):
    job = yaml.safe_load(manifest(capsys, kind))
    for replica in replicas(job, kind).values():
        pod = replica["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*pod}
        assert all({*volume} - {"name"} <= {"persistentVolumeClaim", "secret"} for volume in pod["volumes"])
    for container in containers(job, kind):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert [variable["name"] for variable in container["env"]] == ["OMP_NUM_THREADS"]


def test_kubernetes_puts_nothing_in_place_of_what_the_user_wrote(capsys):
    text = manifest(capsys, "mpijob")
    assert (
        cli.main(["manifest", "--kind", "mpijob", "--image", "i", "--ranks", "1", "--", "train", "--run", "$(A)$"]) == 0
    )
    job = yaml.safe_load(capsys.readouterr().out)
    assert next(containers(job, "mpijob"))["command"][-2:] == ["--run", "$$(A)$$"]
    assert "$" not in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks", "2"], "give what to run after --"),
        (["--ranks", "2", "--", "trian"], "did you mean 'train'?"),
        (["--ranks", "0", "--", "train"], "--ranks takes 1 or more, not 0"),
        (["--ranks", "2", "--gpus-per-rank", "2", "--", "train"], "a rank trains on one GPU"),
        (["--ranks", "2", "--name", "My_Job", "--", "train"], "--name My_Job"),
        (["--ranks", "2", "--name", "a" * 41, "--", "train"], "at most 40"),
        (["--ranks", "2", "--memory", "16GB", "--", "train"], "--memory takes a quantity"),
        (["--ranks", "2", "--cpu", "0", "--", "train"], "--cpu takes a quantity"),
        (["--ranks", "2", "--volume-claim", "data", "--", "train"], "--volume-claim takes NAME:PATH"),
        (["--ranks", "2", "--secret-env", "s3", "--", "train"], "--secret-volume NAME:PATH"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, options, says):
    assert cli.main(["manifest", "--kind", "mpijob", "--image", "i", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def errors_of_pod(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], list[str]]:
    """What Kubernetes's schema has against a pod's template, unknown fields too; from packages that are fetched."""
    folder = tmp_path_factory.mktemp("schemas")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for command in (
        ["install", "--quiet", "--target", str(folder / "packages"), "jsonschema==4.26.0"],
        ["download", "--quiet", "--no-deps", "--dest", str(folder), "kubernetes-validate==1.37.0"],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip {command[0]} {command[-1]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("v1.34.0-local-strict/_definitions.json"))
        (folder / "definitions.json").write_bytes(wheel.read(name))
    program = (
        "import json, sys; sys.path.insert(0, 'packages'); import jsonschema\n"
        "schema = json.load(open('definitions.json'))\n"
        "schema['$ref'] = '#/$defs/io.k8s.api.core.v1.PodTemplateSpec'\n"
        "found = jsonschema.Draft202012Validator(schema).iter_errors(json.load(sys.stdin))\n"
        "print(json.dumps([f'{error.json_path}: {error.message}' for error in found]))\n"
    )

    def errors(template: dict[str, Any]) -> list[str]:
        command = [sys.executable, "-I", "-c", program]
        done = subprocess.run(
            command, cwd=folder, input=json.dumps(template), capture_output=True, text=True, check=True
        )
        found: list[str] = json.loads(done.stdout)
        return found

    return errors


@pytest.mark.slow
@KINDS
def test_pods_are_what_kubernetes_takes(capsys, errors_of_pod, kind):
    for replica in replicas(yaml.safe_load(manifest(capsys, kind)), kind).values():
        assert errors_of_pod(replica["template"]) == []
        spec = replica["template"]["spec"]
        assert errors_of_pod({"spec": spec | {"fsgroup": 1000}}), "an unknown field is an error"
        container = spec["containers"][0] | {"securityContext": {"runAsRoot": False}}
        assert errors_of_pod({"spec": spec | {"containers": [container]}}), "in a container, too"
