#!/usr/bin/env python3
"""Measures what a gateway adds to one upstream: Banyan, LiteLLM's proxy, nginx, and the upstream without any of them.

    PEERS_DIR=some/folder tests/peers/gateway.py [--rounds 3] [--only NAME,NAME] [-o json]

One command: installs LiteLLM from PyPI into $PEERS_DIR once, starts all of them on loopback, and measures each in turn with
`banyan bench load`: one client, which tells how long an answer takes, and many, which tell how many there are in a second.
The upstream is nginx with an answer that is ready, so that it takes as little as possible of the machine that all share.
Needs `cargo build --release`, python3 with venv, and Debian's nginx.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LITELLM = "litellm[proxy]==1.106.2"
MODEL = "fake"
CLIENTS = 64
WARM_UP_S = 3
# LiteLLM reads half of PyPI before it listens.
READY_S_MAX = 120
DIRECT = "no gateway"
OWN = "banyan's own engine"


def chunk(**fields):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return f"data: {json.dumps(head | fields)}\n\n"


def answer(tokens):
    """A streamed answer of that many tokens, as OpenAI's API writes it."""
    delta = lambda delta, reason=None: chunk(choices=[{"index": 0, "delta": delta, "finish_reason": reason}], usage=None)
    usage = {"prompt_tokens": 32, "completion_tokens": tokens, "total_tokens": 32 + tokens}
    words = "".join(delta({"content": f" word{number}"}) for number in range(tokens))
    return delta({"role": "assistant", "content": ""}) + words + delta({}, "stop") + chunk(choices=[], usage=usage) + "data: [DONE]\n\n"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Fleet:
    """The processes under measure; all end with it."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, command, **environment):
        log = (self.folder / f"{name}.log").open("w")
        environment = os.environ | environment
        # A group of its own: LiteLLM's workers end with their parent.
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   cwd=self.folder, env=environment, start_new_session=True)  # fmt: skip
        self.running.append((name, process))

    def ready(self, name, port):
        """Waits until a question is answered."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "ready?"}], "stream": True, "max_tokens": 4}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                                         {"content-type": "application/json"})  # fmt: skip
        begun, error = time.time(), None
        while time.time() - begun < READY_S_MAX:
            if any(process.poll() is not None for known, process in self.running if known == name):
                break
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    if b"[DONE]" in response.read():
                        return
            except OSError as problem:
                error = problem
            time.sleep(0.2)
        sys.exit(f"{name} does not answer ({error}):\n{(self.folder / f'{name}.log').read_text()[-2000:]}")

    def stop(self):
        for signal_, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            for _, process in self.running:
                if process.poll() is None:
                    os.killpg(process.pid, signal_)
            for _, process in self.running:
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    pass


def banyan_binary():
    path = pathlib.Path(os.environ.get("BANYAN") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/banyan")
    if not path.exists():
        sys.exit(f"{path} is missing: run `cargo build --release` first, or say where it is with BANYAN=path")
    return path.resolve()


def nginx_binary():
    # Debian's is not in everybody's path.
    path = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    return path or sys.exit("there is no nginx: apt-get install nginx")


def litellm_binary():
    """Installs it where it is missing."""
    folder = pathlib.Path(os.environ.setdefault("PEERS_DIR", "peers")).resolve() / "gateway"
    if not (folder / "installed.txt").exists() or (folder / "installed.txt").read_text() != LITELLM:
        print(f"installing {LITELLM} to {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", LITELLM], check=True)
        (folder / "installed.txt").write_text(LITELLM)
    return folder / "bin/litellm"


def nginx_conf(folder, name, server):
    temporary = " ".join(f"{kind}_temp_path {folder}/{name}-{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    path = folder / f"{name}.conf"
    path.write_text(f"""
        daemon off; pid {folder}/{name}.pid; error_log stderr; worker_processes auto;
        events {{ worker_connections 4096; }}
        http {{ access_log off; keepalive_requests 1000000000; {temporary} {server} }}
    """)
    return [nginx_binary(), "-p", folder, "-c", path]


def start(fleet, wanted, tokens):
    """Starts the upstream and who stands before it: name to port."""
    folder, cores = fleet.folder, len(os.sched_getaffinity(0))
    names = [DIRECT, *wanted]
    ports = dict(zip(names, free_ports(len(names))))
    upstream = ports[DIRECT]
    (folder / "answer").write_text(answer(tokens))
    # A file can't be posted to: what nginx then shows is the file.
    fleet.start(DIRECT, nginx_conf(folder, "upstream", f"""
        server {{ listen 127.0.0.1:{upstream}; root {folder}; default_type text/event-stream;
            location / {{ error_page 405 =200 /answer; try_files /answer =404; }} }}"""))  # fmt: skip
    fleet.ready(DIRECT, upstream)
    if "nginx" in wanted:
        fleet.start("nginx", nginx_conf(folder, "proxy", f"""
            upstream behind {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
            server {{ listen 127.0.0.1:{ports["nginx"]};
                location / {{ proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
            }}"""))  # fmt: skip
    registries = iter(free_ports(2))
    up = [banyan_binary(), "up", "--store", "memory", "--batch", "256"]
    if "banyan" in wanted:
        (folder / "providers.toml").write_text(f"""
            policy = "always"
            concurrent = 256
            [[upstream]]
            name = "upstream"
            url = "http://127.0.0.1:{upstream}/v1"
            models = ["{MODEL}"]
            extensions = true
        """)
        fleet.start("banyan", [*up, "--engine", "provider", "--providers", "providers.toml", "--listen", f"127.0.0.1:{ports['banyan']}",
                               "--registry-listen", f"127.0.0.1:{next(registries)}"])  # fmt: skip
    if OWN in wanted:
        fleet.start(OWN, [*up, "--engine", "fake", "--token-time", "0ms", "--nodes", "1", "--listen",
                    f"127.0.0.1:{ports[OWN]}", "--registry-listen", f"127.0.0.1:{next(registries)}"])  # fmt: skip
    if "litellm" in wanted:
        (folder / "litellm.yaml").write_text(f"""
model_list:
  - model_name: {MODEL}
    litellm_params: {{ model: openai/{MODEL}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none }}
litellm_settings: {{ telemetry: false, drop_params: true }}
""")
        # As its documentation advises for production: a worker for each core, errors only. Without keys, as all the others.
        fleet.start("litellm", [litellm_binary(), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", ports["litellm"],
                                "--num_workers", cores], LITELLM_MODE="PRODUCTION", LITELLM_LOG="ERROR",
                    LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true")  # fmt: skip
    for name in wanted:
        fleet.ready(name, ports[name])
    return ports


def load(port, clients, seconds, tokens):
    command = [banyan_binary(), "bench", "load", "--url", f"http://127.0.0.1:{port}", "--model", MODEL, "--new", str(tokens),
               "--concurrency", str(clients), "--time", f"{seconds}s", "-o", "json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
    if done.returncode != 0:
        sys.exit(f"`banyan bench load` failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def measure(ports, arguments):
    """One record for each gateway, round and number of clients."""
    records = []
    for port in ports.values():
        # Python compiles, and everybody dials.
        load(port, CLIENTS, WARM_UP_S, arguments.tokens)
    for number in range(arguments.rounds):
        for name, port in ports.items():
            for clients in (1, CLIENTS):
                report = load(port, clients, arguments.seconds, arguments.tokens)
                records.append({"gateway": name, "round": number, "clients": clients} | report)
                print(f"round {number + 1} of {arguments.rounds}  {name:20} {clients:3} at once  {report['answers_per_s']:8.0f} answers/s"
                      f"  p50 {report['answer']['p50_us']:7.0f} us  {report['failed'] + report['refused']} failed",
                      file=sys.stderr)  # fmt: skip
    return records


def summary(records):
    """The medians of the rounds; added: beyond the upstream alone."""

    def median(name, clients, read):
        return statistics.median(read(one) for one in records if (one["gateway"], one["clients"]) == (name, clients))

    def of(name):
        us = {key: median(name, 1, lambda one: one["answer"][f"{key}_us"]) for key in ("p50", "p99")}
        return us | {
            "answers_per_s": median(name, CLIENTS, lambda one: one["answers_per_s"]),
            "loaded_p50": median(name, CLIENTS, lambda one: one["answer"]["p50_us"]),
            "loaded_p99": median(name, CLIENTS, lambda one: one["answer"]["p99_us"]),
            "failed": sum(one["failed"] + one["refused"] for one in records if one["gateway"] == name),
        }

    alone = of(DIRECT)
    rows = [{"gateway": DIRECT} | alone]
    for name in dict.fromkeys(one["gateway"] for one in records if one["gateway"] != DIRECT):
        found = of(name)
        rows.append({"gateway": name} | found | {f"added_{key}": found[key] - alone[key] for key in ("p50", "p99")})
    return rows


def table(rows):
    ms = lambda us: "–" if us is None else f"{us / 1000:.2f}"
    lines = [
        f"| | added p50 ms | added p99 ms | answers/s, {CLIENTS} at once | their p50 ms | p99 ms | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [ms(row.get("added_p50")), ms(row.get("added_p99")), f"{row['answers_per_s']:.0f}", ms(row["loaded_p50"]),
                 ms(row["loaded_p99"]), str(row["failed"])]  # fmt: skip
        lines.append(f"| {row['gateway']} | " + " | ".join(cells) + " |")
    by_name = {row["gateway"]: row["answers_per_s"] for row in rows}
    if "banyan" in by_name and "litellm" in by_name:
        lines += ["", f"Banyan answers {by_name['banyan'] / by_name['litellm']:.1f} times as many a second as LiteLLM."]
    return "\n".join(lines)


def main():
    gateways = ["nginx", "banyan", OWN, "litellm"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement; there are two for each gateway and round")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--only", default="", help="parts of the names of the gateways to measure: " + "; ".join(gateways))
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    wanted = [name for name in gateways if any(part in name for part in arguments.only.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        # nginx's workers are nobody where their master is root.
        os.chmod(folder, 0o755)
        fleet = Fleet(pathlib.Path(folder))
        try:
            rows = summary(measure(start(fleet, wanted, arguments.tokens), arguments))
        finally:
            fleet.stop()
    print(json.dumps(rows, indent=2) if arguments.output == "json" else table(rows))


if __name__ == "__main__":
    main()
