"""Runs the containers of the manifests as their commands, and asks their probes.

Usage: containers.py MANIFESTS PROGRAMS REDIS_URL MONGODB_URI

Each program runs with the command, the arguments and the variables of its container and nothing else, as the container's
user where this runs as root. Three things differ from a pod: the Secret's files lie in a temporary folder instead of
their mountPath, the programs listen on free ports of the loopback address, and the root file system is this machine's.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

MANIFESTS, PROGRAMS, REDIS_URL, MONGODB_URI = sys.argv[1:]
READY_MAX_SECONDS = 30
# What API and worker give to requests and batches in progress after SIGTERM.
DRAIN_SECONDS = 20

manifests = pathlib.Path(MANIFESTS)
documents = [
    document
    for path in sorted(manifests.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document
]


def of_kind(kind):
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def check_files():
    """Each file is in the list of kustomization.yaml, except the two that are said not to be."""
    listed = set(yaml.safe_load((manifests / "kustomization.yaml").read_text())["resources"])
    there = {path.name for path in manifests.glob("*.yaml")} - {"kustomization.yaml"}
    assert listed < there and there - listed == {"keda.yaml", "secret.example.yaml"}, there ^ listed
    target = of_kind("ScaledObject")["coupon-worker"]["spec"]["scaleTargetRef"]["name"]
    assert target in of_kind("Deployment"), target


def alternatives(selector):
    """The labels that a selector takes, one or another."""
    if expressions := selector.get("matchExpressions"):
        [expression] = expressions
        assert expression["operator"] == "In", expression
        return [{expression["key"]: value} for value in expression["values"]]
    return [selector.get("matchLabels", selector)]


def check_traces():
    """API and workers are told where traces go, nowhere at first, and no policy keeps them from the default port."""
    policies = [p["spec"] for p in of_kind("NetworkPolicy").values() if p["spec"].get("podSelector")]
    for name, deployment in of_kind("Deployment").items():
        template = deployment["spec"]["template"]
        [source] = template["spec"]["containers"][0]["envFrom"]
        told = of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
        assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == "", name
        labels = template["metadata"]["labels"].items()
        ports = [
            port["port"]
            for policy in policies
            if any(chosen.items() <= labels for chosen in alternatives(policy["podSelector"]))
            for rule in policy.get("egress", [])
            for port in rule["ports"]
        ]
        assert ports == [4318], (name, ports)


def check_selectors():
    """Whatever selects pods selects those of a workload."""
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in documents if "template" in d.get("spec", {})]
    for document in documents:
        spec = document.get("spec", {})
        selectors = [spec.get("selector"), spec.get("podSelector")]
        for selector in filter(None, selectors):
            for labels in alternatives(selector):
                assert any(labels.items() <= pod.items() for pod in pods), (document["kind"], labels)
    budgets = of_kind("PodDisruptionBudget")
    assert budgets.keys() == of_kind("Deployment").keys(), budgets.keys()


def check_pod(name, pod):
    """What the strictest Pod Security Standard asks for, and a root file system that nothing writes to."""
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"], name
    assert not pod["automountServiceAccountToken"], name
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name


class Container:
    """The only container of a pod, as a process of this machine."""

    def __init__(self, name, pod, folder):
        check_pod(name, pod)
        self.name, self.pod, self.spec = name, pod, pod["containers"][0]
        self.variables = {"PATH": str(folder / "bin")}
        for source in self.spec.get("envFrom", []):
            self.variables |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
        self.variables |= {variable["name"]: variable["value"] for variable in self.spec.get("env", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in self.spec["volumeMounts"]}
        secrets = folder / "secrets"
        self.port = None
        for variable, value in self.variables.items():
            for mount in mounts.values():
                if value.startswith(f"{mount}/"):
                    self.variables[variable] = str(secrets / value.removeprefix(f"{mount}/"))
            if listen := re.fullmatch(r"0\.0\.0\.0:(\d+)", value):
                assert [port["containerPort"] for port in self.spec["ports"]] == [int(listen[1])], name
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    self.port = free.getsockname()[1]
                self.variables[variable] = f"127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"

    def start(self):
        identity = {}
        if os.geteuid() == 0:
            context = self.pod["securityContext"]
            identity = {"user": context["runAsUser"], "group": context["runAsGroup"], "extra_groups": []}
        command = self.spec["command"] + self.spec.get("args", [])
        program = shutil.which(command[0], path=self.variables["PATH"])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [program, *command[1:]], env=self.variables, stdout=log, stderr=log, cwd="/", **identity
            )

    def fail(self, why):
        raise SystemExit(f"{self.name}: {why}\n{self.log.read_text()}")

    def wait_for(self, probe):
        path = self.spec[probe]["httpGet"]["path"]
        start = time.monotonic()
        while time.monotonic() - start < READY_MAX_SECONDS:
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                    print(f"{self.name}: {probe} {path} {answer.status} after {time.monotonic() - start:.1f} s")
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        self.fail(f"{probe} {path} does not succeed within {READY_MAX_SECONDS} s")

    def end(self):
        grace = self.pod["terminationGracePeriodSeconds"]
        delay = int(self.variables.get("COUPON_SHUTDOWN_DELAY", 0))
        assert grace > delay + DRAIN_SECONDS, (self.name, grace, delay)
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=grace)
        took = time.monotonic() - start
        if status or took < delay:
            self.fail(f"ended with {status} after {took:.1f} s")
        print(f"{self.name}: ended {took:.1f} s after SIGTERM, of {grace} s that it is given")


def main():
    check_files()
    check_selectors()
    check_traces()
    folder = pathlib.Path(tempfile.mkdtemp())
    started = []
    try:
        folder.chmod(0o755)
        (folder / "bin").mkdir()
        for program in ["coupon-api", "coupon-worker", "couponctl"]:
            shutil.copy(pathlib.Path(PROGRAMS) / program, folder / "bin")
        (folder / "secrets").mkdir()
        example = of_kind("Secret")["coupon-system"]["stringData"]
        for key, value in {"redis-url": REDIS_URL, "mongodb-uri": MONGODB_URI}.items():
            assert key in example, key
            path = folder / "secrets" / key
            path.write_text(value)
            path.chmod(0o440)
            if os.geteuid() == 0:
                os.chown(path, 0, 10001)

        [(name, job)] = of_kind("Job").items()
        job = Container(name, job["spec"]["template"]["spec"], folder)
        job.start()
        if job.process.wait(timeout=READY_MAX_SECONDS) or "cpn_" not in job.log.read_text():
            job.fail("made no key")
        print(f"{name}: made a key")

        started = [
            Container(name, deployment["spec"]["template"]["spec"], folder)
            for name, deployment in of_kind("Deployment").items()
        ]
        for container in started:
            container.start()
        for container in started:
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                container.wait_for(probe)
        for container in started:
            container.end()
    finally:
        for container in started:
            if container.process.poll() is None:
                container.process.kill()
        shutil.rmtree(folder)


main()
