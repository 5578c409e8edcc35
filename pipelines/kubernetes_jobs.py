"""Manifests of training jobs for Kubeflow's operators: an MPIJob or a PyTorchJob that runs what `headrace` runs here.

Nothing is sent to a cluster: the YAML is printed, for `kubectl apply -f -` or a repository. Manifests hold names of
secrets and never values.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.kubernetes_pods import Mount, PodSettings, cores, pod, quantity
from schemas.errors import UserError, nearest
from schemas.programs import Parser, answering_mistakes

PROGRAMS = ("train", "evaluate", "compare")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = 40  # the operators' own suffixes and the pods' numbers come after it, and a host has 63
_TRIES = 3
_SSH, _SSH_PORT = "/etc/headrace-ssh", 2222


@dataclass(frozen=True, kw_only=True)
class Job:
    """What runs, on how many ranks, in pods of which kind."""

    name: str
    namespace: str | None
    ranks: int
    pod: PodSettings
    program: str
    arguments: tuple[str, ...]

    @property
    def module(self) -> str:
        return f"training.{self.program}"


def mpi_job(job: Job) -> dict[str, Any]:
    """An MPIJob (mpi-operator, v2beta1) whose launcher starts the ranks with horovodrun over ssh, on gloo.

    Not with mpirun: Horovod is built without MPI unless an image is made with HEADRACE_WITH_MPI=1, and horovodrun on
    gloo is what is run and tested elsewhere. The operator gives what it needs: ssh keys, and a hostfile with the
    workers. Its ssh daemon needs no root: it takes the operator's key for its own, and everything else by option.
    """
    launcher = ["horovodrun", "-np", str(job.ranks), "--gloo", "--disable-cache", "--hostfile", "/etc/mpi/hostfile"]
    launcher += ["--ssh-port", str(_SSH_PORT), "--ssh-identity-file", f"{_SSH}/id_rsa"]
    daemon = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(_SSH_PORT)]
    for option in (
        f"HostKey={_SSH}/id_rsa",
        f"AuthorizedKeysFile={_SSH}/authorized_keys",
        "PidFile=none",
        "StrictModes=no",  # the operator's files belong to root
        "UsePAM=no",
        "PasswordAuthentication=no",
        "KbdInteractiveAuthentication=no",
    ):
        daemon += ["-o", option]
    ready = {"tcpSocket": {"port": _SSH_PORT}, "periodSeconds": 2}
    spec = {
        "slotsPerWorker": 1,
        "mpiImplementation": "OpenMPI",  # by which the operator writes a hostfile that horovodrun reads
        "sshAuthMountPath": _SSH,
        "launcherCreationPolicy": "WaitForWorkersReady",
        "runPolicy": _run_policy(),
        "mpiReplicaSpecs": {
            "Launcher": _replicas(
                1, pod("launcher", job.pod.of_launcher(), [*launcher, "python", "-m", job.module, *job.arguments])
            ),
            "Worker": _replicas(job.ranks, pod("worker", job.pod, daemon, readinessProbe=ready)),
        },
    }
    return _document("kubeflow.org/v2beta1", "MPIJob", job, spec)


def pytorch_job(job: Job) -> dict[str, Any]:
    """A PyTorchJob (training-operator, v1): torchrun in every pod, told by the operator's environment who it is."""
    command = ["torchrun", f"--nnodes={job.ranks}", "--nproc-per-node=1", "--node-rank=$(RANK)"]
    command += ["--master-addr=$(MASTER_ADDR)", "--master-port=$(MASTER_PORT)", "-m", "--", job.module, *job.arguments]
    counts = {"Master": 1, "Worker": job.ranks - 1}
    replicas = {
        kind: _replicas(count, pod("pytorch", job.pod, command))  # a name that the operator looks for
        for kind, count in counts.items()
        if count
    }
    spec = {"nprocPerNode": "1", "runPolicy": _run_policy(), "pytorchReplicaSpecs": replicas}
    return _document("kubeflow.org/v1", "PyTorchJob", job, spec)


KINDS = {"mpijob": mpi_job, "pytorchjob": pytorch_job}


def _run_policy() -> dict[str, Any]:
    """A rank that fails ends all, and the same command goes on from the last checkpoint: so a few tries, and then the
    pods that have ended are kept, for their logs."""
    return {"backoffLimit": _TRIES, "cleanPodPolicy": "Running"}


def _replicas(count: int, template: dict[str, Any]) -> dict[str, Any]:
    return {"replicas": count, "restartPolicy": "OnFailure", "template": template}


def _document(version: str, kind: str, job: Job, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "headrace", "app.kubernetes.io/component": job.program}
    metadata: dict[str, Any] = {"name": job.name, "labels": labels}
    if job.namespace is not None:
        metadata["namespace"] = job.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def render(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=100)


def job_of(given: argparse.Namespace) -> Job:
    """The job that was asked for; UserError for what no cluster would take."""
    words = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not words or words[0] not in PROGRAMS:
        meant = nearest(words[0], PROGRAMS) if words else ""
        raise UserError(f"give what to run after --: one of {', '.join(PROGRAMS)}, with its settings{meant}")
    name = given.name or f"headrace-{words[0]}"
    for what, value, longest in (("--name", name, _LONGEST_NAME), ("--namespace", given.namespace, 63)):
        if value is not None and (not _NAME.fullmatch(value) or len(value) > longest):
            raise UserError(
                f"{what} {value}: Kubernetes takes small letters, digits and - between them, here at most {longest}."
            )
    if given.ranks < 1:
        raise UserError(f"--ranks takes 1 or more, not {given.ranks}.")
    if given.gpus_per_rank not in (0, 1):
        raise UserError(f"--gpus-per-rank takes 0 or 1, not {given.gpus_per_rank}: a rank trains on one GPU.")
    if given.kind == "mpijob" and given.secret_env:
        raise UserError(
            "--secret-env: the ranks of an MPIJob start over ssh, which would carry the values on its command lines; "
            "give them as files, with --secret-volume NAME:PATH."
        )
    mounts = [Mount.parse("--volume-claim", text, "claim") for text in given.volume_claim]
    mounts += [Mount.parse("--secret-volume", text, "secret") for text in given.secret_volume]
    settings = PodSettings(
        image=given.image,
        cpu=quantity("--cpu", given.cpu),
        memory=quantity("--memory", given.memory),
        gpus=given.gpus_per_rank,
        threads=cores(given.cpu),
        mounts=tuple(mounts),
        secret_env=tuple(given.secret_env),
    )
    return Job(
        name=name,
        namespace=given.namespace,
        ranks=given.ranks,
        pod=settings,
        program=words[0],
        arguments=tuple(word.replace("$", "$$") for word in words[1:]),  # Kubernetes would put $(NAME) in place
    )


def main(arguments: list[str] | None = None) -> int:
    command = Parser(
        prog="headrace manifest",
        description="Print the YAML of a Kubeflow job that trains on ranks. Example: headrace manifest --kind mpijob "
        "--image registry.example/headrace:1.0 --ranks 4 --volume-claim data:/data -- train --snapshot /data/s "
        "--run /data/r",
    )
    command.add_argument("--kind", choices=KINDS, required=True, help="Horovod's ranks, or torchrun's")
    command.add_argument("--image", required=True, help="image with this project; for an mpijob with ssh, too")
    command.add_argument("--ranks", type=int, required=True, help="how many ranks, each in a pod of its own")
    command.add_argument("--gpus-per-rank", type=int, default=0, help="0 or 1 (0)")
    command.add_argument("--cpu", default="2", help="cores of a rank (2)")
    command.add_argument("--memory", default="8Gi", help="memory of a rank (8Gi)")
    command.add_argument("--name", help="name of the job (headrace-train)")
    command.add_argument("--namespace", help="namespace (that of kubectl's context)")
    command.add_argument(
        "--volume-claim", action="append", default=[], metavar="NAME:PATH", help="mount a claim; all ranks share it"
    )
    command.add_argument(
        "--secret-volume", action="append", default=[], metavar="NAME:PATH", help="mount a secret's keys as files"
    )
    command.add_argument(
        "--secret-env", action="append", default=[], metavar="NAME", help="a secret's keys as variables (pytorchjob)"
    )
    command.add_argument("command", nargs=argparse.REMAINDER, help="-- train, evaluate or compare, with its settings")
    given = command.parse_args(arguments)
    return answering_mistakes("manifest", lambda: print(render(KINDS[given.kind](job_of(given))), end=""))


if __name__ == "__main__":
    sys.exit(main())
