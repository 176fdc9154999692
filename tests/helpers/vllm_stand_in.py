"""A stand-in for `vllm serve`: its command line, and its HTTP as documented, without a model.

It answers "(B)" to whoever asks the adapter and "(A)" to whoever asks the base, and writes what it
was asked, one JSON object a line, to the file that $STAND_IN_LOG names. After $STAND_IN_ANSWERS
answers it dies.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dtype")
    parser.add_argument("--limit-mm-per-prompt", type=json.loads)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int)
    parser.add_argument("--lora-modules", nargs="*", default=[])
    asked = parser.parse_args()
    assert asked.enable_lora == bool(asked.lora_modules)
    cards = [{"id": asked.model, "root": asked.model, "parent": None}]
    for module in asked.lora_modules:
        name, _, folder = module.partition("=")
        cards.append({"id": name, "root": folder, "parent": asked.model})
    server = ThreadingHTTPServer((asked.host or "127.0.0.1", asked.port), handler(cards))
    print(server.server_port, flush=True)
    server.serve_forever()


def handler(cards: list[dict]) -> type[BaseHTTPRequestHandler]:
    lock, left = Lock(), [int(os.environ.get("STAND_IN_ANSWERS", "1000000"))]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = {"/health": {}, "/version": {"version": "0.0-stand-in"}}
            self._send(said.get(self.path) or {"object": "list", "data": cards})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            [message] = body["messages"]
            parts = [p.get("text") or size_of(p["image_url"]["url"]) for p in message["content"]]
            [card] = [card for card in cards if card["id"] == body["model"]]
            with lock:
                left[0] -= 1
            if left[0] < 0:
                os._exit(1)  # as an engine that ran out of memory
            with lock, open(os.environ["STAND_IN_LOG"], "a") as log:
                print(json.dumps({**body, "messages": parts}), file=log)
            text = "(B)" if card["parent"] else "(A)"
            self._send({"choices": [{"message": {"role": "assistant", "content": text}}]})

        def _send(self, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *said: object) -> None:
            pass

    return Handler


def size_of(url: str) -> list[int]:
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return list(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").size)


if __name__ == "__main__":
    sys.exit(main())
