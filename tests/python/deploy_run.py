"""Starts what deploy/'s files start, command for command, as processes of this machine, and asks a question.

    deploy_run.py compose|kubernetes BANYAN STORE

Every host of the files becomes an address of its own in 127.0.0.0/8, so ports are those of the files. The store's address is told,
images that are not Banyan's or etcd's are left out, and the model is the one in the program.
"""

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

HERE = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 60


class Process:
    """A container's process."""

    def __init__(self, name, words, environment, folder):
        self.name, self.environment = name, environment
        self.log = open(folder / f"{name}.log", "w+")
        self.process = subprocess.Popen(
            words, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=folder
        )

    def told(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()[-3000:]

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)


def compose(model):
    """Services of the compose file: name, program, words, environment."""
    text = (HERE / "deploy/compose/compose.yaml").read_text()
    # As compose does: ${NAME:-default}.
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: {"BANYAN_MODEL": model}.get(found[1], found[2]), text)
    for name, service in yaml.safe_load(text)["services"].items():
        image = service["image"].split(":")[0].split("/")[-1]
        yield name, [name], image, [str(word) for word in service.get("command", [])], service.get("environment", {}), {}


def kubernetes(model):
    """Pods of the manifests."""
    things = [thing for path in sorted((HERE / "deploy/kubernetes/base").glob("*.yaml")) for thing in yaml.safe_load_all(path.read_text())]
    settings = {thing["metadata"]["name"]: thing["data"] for thing in things if thing["kind"] == "ConfigMap"}
    for thing in things:
        if thing["kind"] not in ("StatefulSet", "Deployment"):
            continue
        for number in range(thing["spec"]["replicas"]):
            pod = f"{thing['metadata']['name']}-{number}"
            hosts = [pod, f"{pod}.{thing['spec'].get('serviceName', '')}"]
            [container] = thing["spec"]["template"]["spec"]["containers"]
            environment = {}
            for source in container.get("envFrom", []):
                environment |= settings[source["configMapRef"]["name"]]
            for variable in container.get("env", []):
                given = variable.get("valueFrom", {})
                value = pod if "fieldRef" in given else "postgres://secret@postgres/banyan" if "secretKeyRef" in given else variable["value"]
                environment[variable["name"]] = model if variable["name"] == "BANYAN_MODEL" else value
            words = container.get("command", []) + container["args"]
            words = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word) for word in words]
            yield pod, hosts, container["image"].split(":")[0].split("/")[-1], words, environment, container


def main():
    kind, banyan, store = sys.argv[1:]
    pods = list({"compose": compose, "kubernetes": kubernetes}[kind]("banyan-tiny"))
    network = {"compose": 1, "kubernetes": 2}[kind]
    # Apart from whoever else runs this at the same time.
    block = os.getpid() % 200 + 20
    addresses = {host: f"127.{block}.{network}.{number}" for number, (_, hosts, *_) in enumerate(pods, 1) for host in hosts}
    longest_first = "|".join(sorted(map(re.escape, addresses), key=len, reverse=True))

    def placed(text, pod):
        text = re.sub(rf"(?<![\w.-])({longest_first})(?=:\d)", lambda found: addresses[found[1]], text)
        return text.replace("0.0.0.0", addresses[pod])

    folder = pathlib.Path(tempfile.mkdtemp(prefix="banyan-deploy-"))
    running, left_out, apis, ended = {}, [], [], []
    try:
        for name, _, image, words, environment, container in pods:
            environment = {key: placed(str(value), name) for key, value in environment.items()}
            words = [placed(word, name) for word in words]
            if image == "etcd":
                data = folder / f"{name}-data"
                words = [re.sub(r"^--data-dir=.*", f"--data-dir={data}", word) for word in words]
            elif image == "banyan":
                words = [banyan, *words]
                # Tests don't share this user's things; the address of the store is the only thing that is not the file's.
                environment["BANYAN_STORE"] = store
                environment["HF_HUB_OFFLINE"] = "1"
            else:
                left_out.append(name)
                continue
            running[name] = Process(name, words, environment, folder)
            if "api" in words:
                apis.append((name, f"http://{addresses[name]}:8080", container))
        print("started:", *running)
        print("left out:", *left_out)

        for name, url, container in apis:
            path = container.get("readinessProbe", {}).get("httpGet", {}).get("path", "/readyz")
            eventually(f"{name} is ready", lambda: get(url + path), running)
            eventually(f"{name} is alive", lambda: get(url + container.get("livenessProbe", {}).get("httpGet", {}).get("path", "/livez")), running)
        nodes = [name for name, process in running.items() if "node" in process.process.args]
        etcd = running[nodes[0]].environment["BANYAN_ETCD"]
        cluster = running[nodes[0]].environment["BANYAN_CLUSTER"]

        def names():
            listed = subprocess.run([banyan, "node", "list", "-o", "name", "--etcd", etcd, "--cluster", cluster], capture_output=True, text=True)
            return listed.stdout.split()

        eventually("everybody is registered", lambda: sorted(names()) == sorted(nodes), running)
        for name, url, _ in apis:
            print(f"{name} answers:", question(url))

        # What is to happen before a pod's end: the node has left, and its process has ended, before anybody signals it.
        for name, _, _, _, environment, container in reversed(pods):
            before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            if before:
                words = [banyan if word == "/usr/local/bin/banyan" else word for word in before]
                subprocess.run(words, env={**os.environ, **running[name].environment}, check=True)
                assert running[name].process.wait(timeout=PATIENCE_S) == 0 and name not in names(), f"{name} has not left"
                ended.append(name)
                print(f"{name} was drained; {apis[0][0]} answers:", question(apis[0][1]))
                break

        # One root dies: the other one takes over, and the next question is answered.
        roots = [name for name in nodes if name.startswith("root")]
        running[roots[0]].process.kill()
        ended.append(roots[0])
        eventually("the other root reigns", lambda: get(apis[-1][1] + "/readyz") and question(apis[-1][1]), running, dead=ended)
        print(f"without {roots[0]}, {apis[-1][0]} answers:", question(apis[-1][1]))

        for name in [name for name, *_ in apis] + nodes[::-1]:
            if name not in ended:
                code = running[name].end()
                assert code == 0, f"{name} ended with {code}: {running[name].told()}"
        print("all ended well")
    finally:
        for process in running.values():
            if process.process.poll() is None:
                process.process.kill()
        for process in running.values():
            process.process.wait()


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def question(url):
    body = {"model": "banyan-tiny", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            text = json.load(answer)["choices"][0]["text"]
    except (urllib.error.URLError, OSError) as error:
        return print("not answered:", error)
    assert len(text.split()) >= 4, text
    return text


def eventually(what, look, running, dead=()):
    begun = time.monotonic()
    for pause in itertools.repeat(0.2):
        if look():
            return
        for name, process in running.items():
            assert name in dead or process.process.poll() is None, f"{name} has ended: {process.told()}"
        if time.monotonic() - begun > PATIENCE_S:
            raise AssertionError(f"in vain: {what}\n" + "\n".join(f"{name}: {process.told()[-500:]}" for name, process in running.items()))
        time.sleep(pause)


main()
