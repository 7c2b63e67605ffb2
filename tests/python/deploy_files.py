"""Reads every file of deploy/ as its tool would, and compares it with the tool's schema, as far as that needs no cluster.

    deploy_files.py        with the packages of requirements.txt
"""

import pathlib
import re
import subprocess
import sys

import hcl2
import yaml

HERE = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = HERE / "deploy"
TOOLS = pathlib.Path(sys.executable).parent


def run(*command):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def compose():
    path = DEPLOY / "compose/compose.yaml"
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    [file] = documents(path)
    services = file["services"]
    for name, service in services.items():
        # What is mounted from here is here.
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (path.parent / source).exists(), f"{name} mounts {source}, which is not there"
            else:
                assert source in file["volumes"], f"{name} mounts the volume {source}, which is not declared"
        for other in service.get("depends_on", []):
            assert other in services, f"{name} waits for {other}, which is not there"
        text = yaml.safe_dump([service.get("command"), service.get("environment")])
        for host in re.findall(r"(?<=http://)[a-z][a-z0-9-]*(?=:)", text):
            assert host in services, f"{name} asks {host}, which is not there"
    kinds = [len([name for name in services if re.fullmatch(kind, name)]) for kind in (r"etcd-\d", r"root-\d", r"node-\d", r"api-\d")]
    assert kinds == [3, 2, 4, 2], kinds
    assert {"postgres", "nginx", "prometheus", "grafana"} <= services.keys()
    for provisioning in path.parent.rglob("*.y*ml"):
        assert documents(provisioning), provisioning


def kubernetes():
    base = DEPLOY / "kubernetes/base"
    [kustomization] = documents(base / "kustomization.yaml")
    listed = set(kustomization["resources"])
    there = {path.name for path in base.glob("*.yaml")} - {"kustomization.yaml"}
    assert listed == there, f"listed, or there, and not both: {listed ^ there}"
    everything = []
    for name in listed:
        run(TOOLS / "kubernetes-validate", "--strict", base / name)
        everything += documents(base / name)
    labels = lambda spec: spec["template"]["metadata"]["labels"]
    workloads = [thing for thing in everything if thing["kind"] in ("StatefulSet", "Deployment")]
    names = {thing["metadata"]["name"] for thing in workloads}
    for thing in everything:
        kind, name, spec = thing["kind"], thing["metadata"]["name"], thing.get("spec", {})
        if kind == "Service":
            assert any(spec["selector"].items() <= labels(work["spec"]).items() for work in workloads), f"Service {name} finds nobody"
        if kind == "PodDisruptionBudget":
            wanted = spec["selector"]["matchLabels"].items()
            assert any(wanted <= labels(work["spec"]).items() for work in workloads), f"budget {name} guards nobody"
        if kind == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in names, name
    budgets = {thing["metadata"]["name"] for thing in everything if thing["kind"] == "PodDisruptionBudget"}
    assert budgets == names, f"without a budget: {names - budgets}"
    for work in workloads:
        pod = work["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"] and own["capabilities"]["drop"] == ["ALL"]
            assert "readinessProbe" in container and "memory" in container["resources"]["limits"], work["metadata"]["name"]
        stop = [container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []) for container in pod["containers"]]
        for command in filter(None, stop):
            deadline = int(command[command.index("--deadline") + 1].removesuffix("s"))
            assert deadline < pod["terminationGracePeriodSeconds"], f"{work['metadata']['name']} is killed before it has drained"
    for overlay in (DEPLOY / "kubernetes").glob("*/kustomization.yaml"):
        [kustomization] = documents(overlay)
        for resource in kustomization["resources"]:
            assert (overlay.parent / resource).exists(), f"{overlay} names {resource}, which is not there"


def containers():
    for file in sorted((DEPLOY / "container").glob("Dockerfile*")):
        run(TOOLS / "hadolint", file)
        text = file.read_text()
        stages = text.split("\nFROM ")
        assert "USER 65532:65532" in stages[-1], f"{file} does not run as nobody in particular"
        for source in re.findall(r"^COPY --from=build .*?/src/(.*?) ", text, re.M):
            for part in source.split():
                part = part.removeprefix("/src/")
                assert part.startswith("target/") or (HERE / part).exists(), f"{file} copies {part}, which is not there"
    rust = re.search(r'channel = "([\d.]+)"', (HERE / "rust-toolchain.toml").read_text())[1]
    for file in (DEPLOY / "container").glob("Dockerfile*"):
        versions = re.findall(r"rust:([\d.]+)|default-toolchain ([\d.]+)", file.read_text())
        assert all(rust.startswith(one or other) for one, other in versions), f"{file} takes another Rust than {rust}"


def terraform():
    module = DEPLOY / "terraform/aws"
    parsed = {}
    for path in sorted(module.glob("*.tf")):
        with path.open() as file:
            parsed[path.name] = hcl2.load(file)
    unquoted = lambda name: name.strip('"')
    declared = {unquoted(name) for variable in parsed["variables.tf"]["variable"] for name in variable if not name.startswith("__")}
    text = "".join(path.read_text() for path in module.glob("*.tf"))
    used = set(re.findall(r"\bvar\.([a-z_0-9]+)", text))
    assert declared == used, f"declared, or used, and not both: {declared ^ used}"
    template = (module / "user-data.sh.tftpl").read_text()
    given = set(re.search(r"templatefile\(.*?\{(.*?)\}\)", text, re.S)[1].replace(" ", "").split("\n"))
    given = {line.split("=")[0] for line in given if "=" in line}
    wanted = set(re.findall(r"\$\{(\w+)\}", template)) - {"key", "value"} | set(re.findall(r"in (\w+) ~", template))
    assert given == wanted, f"given to the instance, or wanted there, and not both: {given ^ wanted}"
    # What the shell would see.
    script = re.sub(r"%\{.*?\}\n", "", re.sub(r"\$\{\w+\}", "x", template))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def scripts():
    run("bash", "-n", DEPLOY / "release.sh")
    run("sh", "-n", DEPLOY / "preempt.sh")


for check in (compose, kubernetes, containers, terraform, scripts):
    check()
    print(f"{check.__name__}: good")
