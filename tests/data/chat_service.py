"""A chat endpoint on loopback that answers by script, and keeps what it was asked and what it charged."""

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """status, headers, body; delay: seconds before the answer; drip: seconds between its bytes; promised: a
    Content-Length that is not kept."""

    body: str
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    promised: int | None = None


@dataclass
class Asked:
    """One request as the service saw it."""

    number: int
    count: int
    tag: str
    model: str
    max_tokens: int
    body: str
    headers: dict
    at: float


def rows_for(asked: Asked, start: int = 0, tag: str | None = None) -> list[dict]:
    return [
        {
            "prompt": f"Problem {asked.model} {asked.tag[1:-1]} {asked.number}-{at}: what is {at} + 1?",
            "steps": [["<step>", f"{at} + 1"], [tag or asked.tag, f"gives {at + 1}"]],
            "answer": str(at + 1),
            "difficulty": 1 + at % 3,
            "topic": "sums",
        }
        for at in range(start, asked.count)
    ]


def chat(content: object, usage: dict | None = None) -> Reply:
    """A chat completion with this content; JSON where it is no text."""
    text = content if isinstance(content, str) else json.dumps(content)
    usage = {"prompt_tokens": 100, "completion_tokens": 50} if usage is None else usage
    return Reply(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}))


def good(asked: Asked) -> Reply:
    return chat(rows_for(asked))


class Service:
    """asked: the requests so far."""

    def __init__(self, url: str):
        self.url, self.asked, self.lock = url, [], threading.Lock()


def _handler(script: Callable[[Asked], Reply], service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            request = json.loads(body)
            prompt = request["messages"][0]["content"]
            tag = re.search(r"one step carries (<\w+>)", prompt)[1]
            count = int(re.search(r"Write (\d+) different", prompt)[1])
            with service.lock:
                number = len(service.asked)
                facts = (number, count, tag, request["model"], request["max_tokens"], body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.asked.append(Asked(*facts, headers, time.monotonic()))
            reply = script(service.asked[number])
            time.sleep(reply.delay)
            data = reply.body.encode()
            try:
                self.send_response(reply.status)
                length = len(data) if reply.promised is None else reply.promised
                for name, value in {"Content-Length": length, **reply.headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                for at in range(len(data) if reply.drip else 0):
                    self.wfile.write(data[at : at + 1])
                    time.sleep(reply.drip)
                self.wfile.write(b"" if reply.drip else data)
            except OSError:
                self.close_connection = True
            self.close_connection |= reply.promised is not None

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def handle_error(self, *_):
        pass


@contextmanager
def serving(script: Callable[[Asked], Reply]):
    service = Service("")
    server = _Quiet(("127.0.0.1", 0), _handler(script, service))
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
