"""A tree that is made up, told to the tree page as an API would tell it: as many nodes as wanted, with queries that come and go."""

import json
import random
import threading
import time

from stage import Stage

SLOTS = 4
DEVICES = ["cpu", "cuda:0 · H200", "cpu · AVX2"]
MODELS = ["SmolLM2-135M-Instruct", "gpt2", "Qwen3-0.6B"]


class Grove:
    """A tree of so many nodes. `step` lets a tenth of a second pass and returns what changed, as an event of the API."""

    def __init__(self, nodes, branching=4, seed=7, load=0.6, rows=0):
        self.random = random.Random(seed)
        self.load = load
        self.queries = {}
        self.number = 0
        self.waiting = 0
        root = self.node("root", None, "root")
        self.nodes = {"root": root}
        inner = ["root"]
        for number in range(1, nodes + 1):
            # With rows, the first few are parents and all others leaves of them.
            parent = inner[(number - 1) // branching] if rows == 0 or number <= rows else inner[1 + number % rows]
            name = f"node-{number}"
            self.nodes[name] = self.node(name, parent, "node")
            inner.append(name)

    def node(self, name, parent, role):
        serves = role == "node"
        return {
            "name": name, "tree": "main", "parent": parent, "role": role, "state": "ready", "device": self.random.choice(DEVICES) if serves else "",
            "models": [self.random.choice(MODELS)] if serves else [], "slots": SLOTS if serves else 0, "running": 0, "queued": 0, "tokens": 0, "tokens_per_s": 0.0,
        }  # fmt: skip

    def trail(self, name):
        way = []
        while name is not None:
            way.append(name)
            name = self.nodes[name]["parent"]
        return way[::-1]

    def whole(self):
        return {"whole": True, "nodes": list(self.nodes.values()), "queries": list(self.queries.values()), "waiting": self.waiting, "live": len(self.queries)}

    def step(self, most=40):
        before = {name: dict(node) for name, node in self.nodes.items()}
        told = []
        for query in [each for each in self.queries.values() if self.random.random() < 0.06]:
            del self.queries[query["id"]]
            self.nodes[query["node"]]["running"] -= 1
            told.append({**query, "state": "finished"})
        free = [node for node in self.nodes.values() if node["role"] == "node" and node["state"] != "lost" and node["running"] < SLOTS]
        wanted = int(self.load * SLOTS * (len(self.nodes) - 1)) - len(self.queries)
        for _ in range(min(wanted, most)):
            node = self.random.choice(free)
            if node["running"] == SLOTS:
                continue
            self.number += 1
            node["running"] += 1
            query = {"id": f"0192f3a4b5c67d8e9fa0{self.number:012x}", "state": "running", "node": node["name"], "trail": self.trail(node["name"])}
            self.queries[query["id"]] = query
            told.append(query)
        for node in self.nodes.values():
            if node["role"] == "node" and node["state"] != "lost":
                node["tokens"] += node["running"] * 3
                node["tokens_per_s"] = node["running"] * 31.5
                node["state"] = "busy" if node["running"] == SLOTS else "ready"
        changed = [{key: value for key, value in node.items() if key == "name" or before[name][key] != value} for name, node in self.nodes.items() if before[name] != node]
        return {"nodes": changed, "gone": [], "queries": told, "waiting": self.waiting, "live": len(self.queries)}

    def lose(self, name):
        node = self.nodes[name]
        gone = [query for query in self.queries.values() if query["node"] == name]
        for query in gone:
            del self.queries[query["id"]]
        node.update(state="lost", running=0, tokens_per_s=0.0)
        return {"nodes": [node], "gone": [], "queries": [{**query, "state": "cancelled"} for query in gone], "waiting": 0, "live": len(self.queries)}


class Told(Stage):
    """A stage that tells of a grove, ten times a second while it lives, and answers what is asked about it."""

    def __init__(self, grove, lives=True, operator=True, port=0):
        super().__init__(port=port)
        self.grove, self.lives, self.listeners = grove, lives, []
        self.session = {"object": "session", "required": False, "signed_in": False, "operator": operator}
        self.routes["/v1/tree/events"] = self.events
        self.routes["/v1/session"] = lambda handler: handler.whole(json.dumps(self.session).encode(), "application/json")
        keys = [{"id": f"key_{n}", "name": name, "shown": "sk-…", "models": [], "requests_per_minute": 60, "tokens_per_minute": None, "operator": n == 0, "created_ms": 0, "revoked_ms": None} for n, name in enumerate(["ada", "bob"])]
        usage = [{"day": "2026-11-20", "key_id": "key_1", "key": "bob", "model": "gpt2", "node": "node-1", "requests": 1204, "failed": 3, "prompt_tokens": 80_211, "completion_tokens": 301_884}]
        for path, data in (("/v1/keys", keys), ("/v1/usage", usage)):
            self.routes[path] = lambda handler, data=data: handler.whole(json.dumps({"object": "list", "data": data}).encode(), "application/json")
        for name, node in grove.nodes.items():
            self.routes[f"/v1/tree/nodes/{name}"] = lambda handler, node=node: handler.whole(json.dumps({**node, "object": "node", "version": "0.1.0", "uptime_ms": 7_412_000}).encode(), "application/json")
            log = [{"number": n, "at_ms": 1_795_200_000_000 + n * 700, "text": f"query …{n:04x} arrived: passed to a child with room"} for n in range(12)]
            self.routes[f"/v1/tree/nodes/{name}/log"] = lambda handler, log=log: handler.whole(json.dumps({"object": "list", "data": log}).encode(), "application/json")
        threading.Thread(target=self.live, daemon=True).start()

    def live(self):
        while True:
            time.sleep(0.1)
            if self.lives:
                with self.lock:
                    news = self.grove.step()
                    for query in news["queries"]:
                        if query["id"] in self.grove.queries:
                            self.way(query["id"])
                self.tell(news)

    def tell(self, news):
        with self.lock:
            for listener in self.listeners[:]:
                try:
                    listener.text(f"id: 1-1\ndata: {json.dumps(news)}\n\n")
                except OSError:
                    self.listeners.remove(listener)

    def events(self, handler):
        handler.begin(200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        with self.lock:
            handler.text(f"id: 1-0\ndata: {json.dumps(self.grove.whole())}\n\n")
            self.listeners.append(handler)
            for query in self.grove.queries:
                self.way(query)
        while handler in self.listeners:
            time.sleep(0.2)

    def way(self, id):
        query = self.grove.queries[id]
        hops = [{"node": node, "reason": "room" if node == query["node"] else "child_with_room", "spent_us": 240} for node in query["trail"]]
        attempt = {"number": 1, "holder": query["node"], "reason": "child_with_room", "sent_us": 40, "held_us": 900, "started_us": 950, "ended_us": None, "outcome": "", "trail": hops}
        way = {"object": "query", "id": id, "model": "gpt2", "owner": None, "state": query["state"], "tokens": 41, "first_token_us": 31_000, "ended_us": None, "error": None, "attempts": [attempt]}
        self.routes[f"/v1/tree/queries/{id}"] = lambda handler: handler.whole(json.dumps(way).encode(), "application/json")


if __name__ == "__main__":
    import sys

    print(Told(Grove(*(int(each) for each in sys.argv[1:])), port=8098).url, flush=True)
    threading.Event().wait()
