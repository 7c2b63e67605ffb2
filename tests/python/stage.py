"""A stage for the page: its server, in which what the tree would say is written by the test.

Pages come from `web/` as they are, under the headers that the API gives them; what is asked of `/v1/` is answered by scripts, or
by a real API where one is given. So a test can have a model that says what no model should, a line that breaks, and a refusal.
"""

import json
import pathlib
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WEB = pathlib.Path(__file__).resolve().parents[2] / "web"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".png": "image/png", ".webmanifest": "application/manifest+json",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; manifest-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
MODELS = [
    {"id": "chatter", "object": "model", "created": 1, "owned_by": "banyan", "banyan": {"chat": True, "context": 8192, "nodes": ["node-1", "node-2"]}},
    {"id": "teller", "object": "model", "created": 1, "owned_by": "banyan", "banyan": {"chat": False, "context": 1024, "nodes": ["node-1"]}},
]
ORIGIN = {
    "query": "0192f3a4b5c67d8e9fa0b1c2d3e4f506", "node": "node-2", "attempt": 1, "running": True,
    "trail": [{"node": "", "reason": "waited", "ms": 1.5}, {"node": "node-1", "reason": "child_with_room", "ms": 0.2}, {"node": "node-2", "reason": "room", "ms": 0.4}],
}


class Stage:
    """Serves until it is closed. `answers` are what is said next, one after the other; the last one stays."""

    def __init__(self, behind=None, port=0):
        self.behind = behind
        self.answers = [Says("Hello.")]
        self.asked = []
        self.ended = []
        self.away = False
        # Who answers at a path instead.
        self.routes = {}
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"stage": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        # Browsers end connections as they like.
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def next_answer(self, request):
        with self.lock:
            self.asked.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Says:
    """An answer: its pieces, how many a second, and after how many the line breaks."""

    def __init__(self, text, pieces=None, rate=None, breaks_after=None, finish="stop", usage=True, places=(), leaves=False):
        self.pieces = pieces or [text[at : at + 24] for at in range(0, len(text), 24)]
        self.rate, self.breaks_after, self.finish, self.usage = rate, breaks_after, finish, usage
        # Whether the API itself is gone when the line breaks.
        self.leaves = leaves
        # Places in the queue that are told before the answer begins, each when the test says so.
        self.places, self.moved = places, threading.Semaphore(0)

    def play(self, handler):
        last = handler.headers.get("last-event-id", "")
        seen = int(last.split(":")[1].rstrip("te")) if last else 0
        handler.begin(200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        if not last:
            handler.event(0, {"role": "assistant", "content": ""}, origin={**ORIGIN, "node": None, "running": False, "trail": []} if self.places else ORIGIN)
        for place in () if last else self.places:
            handler.send({"id": "chatcmpl-1", "choices": [], "banyan": {**ORIGIN, "node": None, "running": False, "trail": [], "place": place}}, 0)
            self.moved.acquire()
        due = time.monotonic()
        for at in range(seen, len(self.pieces)):
            if self.breaks_after is not None and at >= self.breaks_after:
                self.breaks_after = None
                handler.stage.away = self.leaves
                handler.connection.shutdown(2)
                return
            if self.rate:
                due += 1 / self.rate
                time.sleep(max(0, due - time.monotonic()))
            handler.event(at + 1, {"content": self.pieces[at]})
        handler.event(f"{len(self.pieces)}e", {}, finish=self.finish, origin=ORIGIN)
        count = len(self.pieces)
        if self.usage:
            handler.send({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": count + 7}}, f"{count}e")
        handler.text("data: [DONE]\n\n")
        handler.text(None)


class Refuses:
    """An answer that is none."""

    def __init__(self, status, message, code=None, after=None):
        self.status, self.message, self.code, self.after = status, message, code, after

    def play(self, handler):
        body = json.dumps({"error": {"message": self.message, "type": "x", "param": None, "code": self.code}}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if self.after is not None:
            headers["retry-after"] = str(self.after)
        handler.begin(self.status, headers)
        handler.wfile.write(body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stage: Stage

    def log_message(self, *_):
        pass

    def begin(self, status, headers):
        self.send_response(status)
        self.chunked = "content-length" not in headers
        if self.chunked:
            headers = {**headers, "transfer-encoding": "chunked"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def text(self, text):
        data = text.encode() if text is not None else b""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send(self, value, number):
        self.text(f"id: chatcmpl-1:{number}\ndata: {json.dumps(value)}\n\n")

    def event(self, number, delta, finish=None, origin=None):
        choice = {"index": 0, "delta": delta, "text": delta.get("content", ""), "finish_reason": finish}
        if self.path.endswith("/chat/completions"):
            del choice["text"]
        else:
            del choice["delta"]
        self.send({"id": "chatcmpl-1", "choices": [choice], **({"banyan": origin} if origin else {})}, number)

    def do_GET(self):
        if self.stage.away:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        path = self.path.split("?")[0]
        if self.stage.behind and path.startswith("/v1/"):
            return self.forward()
        if path in self.stage.routes:
            try:
                return self.stage.routes[path](self)
            except (BrokenPipeError, ConnectionError):
                self.close_connection = True
                return
        if path == "/v1/models":
            return self.whole(json.dumps({"object": "list", "data": MODELS}).encode(), "application/json")
        file = WEB / ({"/": "index.html", "/tree": "tree.html"}.get(path) or path.lstrip("/"))
        if file.is_file() and WEB in file.parents:
            return self.whole(file.read_bytes(), TYPES[file.suffix])
        self.begin(404, {"content-length": "0"})

    def whole(self, body, media_type):
        self.begin(200, {
            "content-type": media_type, "content-length": str(len(body)), "cache-control": "no-cache", "x-content-type-options": "nosniff",
            "content-security-policy": POLICY, "referrer-policy": "no-referrer",
        })  # fmt: skip
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.stage.away:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if self.stage.behind:
            return self.forward(body)
        try:
            self.stage.next_answer({"body": json.loads(body), "headers": dict(self.headers)}).play(self)
        except (BrokenPipeError, ConnectionError):
            self.close_connection = True

    def do_PUT(self):
        self.do_POST()

    def do_DELETE(self):
        self.stage.ended.append(self.path)
        if self.stage.behind:
            return self.forward()
        self.begin(204, {"content-length": "0"})

    def forward(self, body=None):
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "origin", "accept-encoding")}
        request = urllib.request.Request(self.stage.behind + self.path, data=body, headers=headers, method=self.command)
        try:
            response = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            if response.status in (204, 304):
                return self.begin(response.status, {"content-length": "0", **({"etag": response.headers["etag"]} if response.headers["etag"] else {})})
            kept = {name: value for name, value in response.headers.items() if name.lower() not in ("connection", "transfer-encoding", "content-length", "date")}
            self.begin(response.status, kept)
            try:
                while piece := response.read1(65536):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                self.text(None)
            except (BrokenPipeError, ConnectionError):
                self.close_connection = True


if __name__ == "__main__":
    import sys

    stage = Stage(*sys.argv[1:2], port=8099)
    print(stage.url, flush=True)
    threading.Event().wait()
