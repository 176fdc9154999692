"""Written answers of a model that vLLM serves, asked for over its OpenAI-compatible HTTP.

A question's images travel as PNG inside the request, parts in the order that the protocol says; the
server renders the model's own chat template. Decoding is greedy. What options' log-probabilities
would need, the server does not give: `logprobs` are None.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kvfix.data.units import Question
from kvfix.eval.mcq.answer import Answer
from kvfix.eval.mcq.letters.parse import extract
from kvfix.eval.mcq.prompt import McqProtocol, ask
from kvfix.mlm.prompt import Prompt

TIMEOUT = 600  # seconds that one answer may take


class Served(NamedTuple):
    """A model as a server knows it."""

    url: str  # of the server, without /v1
    name: str  # what requests call the model
    version: str  # of vLLM


def find_served(url: str, *, root: str) -> Served:
    """The model at a server that was read from `root`: a hub id, or a model's or adapter's folder.

    Raises:
        ValueError: what answers there is not vLLM, or it serves other models.
        ConnectionError: nothing answers there.
    """
    url = url.rstrip("/").removesuffix("/v1")
    cards = _get(url, "/v1/models").get("data", [])
    roots = {str(card.get("root")): str(card["id"]) for card in cards}
    same = {_place(at): name for at, name in roots.items()}
    if _place(root) not in same:
        raise ValueError(
            f"{url}: expected a server of {root}, found one of {', '.join(roots) or 'nothing'}; "
            "start it with this --model, and with --lora-modules NAME=FOLDER for an adapter"
        )
    return Served(url, same[_place(root)], str(_get(url, "/version").get("version")))


def written_answers(
    served: Served, questions: Sequence[Question], protocol: McqProtocol
) -> list[Answer]:
    """Ask all questions at once, which the server batches as it likes; answers in their order.

    Raises:
        ValueError: the server refused a question.
        ConnectionError: it no longer answers.
    """
    with ThreadPoolExecutor(max(1, len(questions))) as pool:
        texts = list(pool.map(lambda q: _write(served, ask(q, protocol), protocol), questions))
    return [
        Answer(text, extract(text, protocol.profile, options=q.choices))
        for q, text in zip(questions, texts, strict=True)
    ]


def _write(served: Served, prompt: Prompt, protocol: McqProtocol) -> str:
    body = {
        "model": served.name,
        "messages": [{"role": "user", "content": _content(prompt)}],
        "temperature": 0.0,
        "repetition_penalty": 1.0,  # else the model's own generation config moves the choice
        "max_tokens": protocol.max_new_tokens,
    }
    got = _get(served.url, "/v1/chat/completions", body)
    return str(got["choices"][0]["message"]["content"] or "").strip()


def _content(prompt: Prompt) -> list[dict[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": _png(image)}} for image in prompt.images]
    before, after = (
        [{"type": "text", "text": text}] if text else [] for text in (prompt.prefix, prompt.text)
    )
    return [*before, *images, *after]


def _png(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _place(root: str) -> str:
    return str(Path(root).resolve()) if Path(root).exists() else root


def _get(server: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a server answers; while it lives, a failure is the fault of what was asked."""
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"expected the address of a server, http://HOST:PORT, found {server}")
    url = server + path
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with opened(request, seconds=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        said = f"{url}: expected an answer, found HTTP {error.code}: " + error.read(2000).decode(
            errors="replace"
        )
        if error.code >= 500 and not healthy(server):
            raise ConnectionError(said) from error
        raise ValueError(said) from error
    except OSError as error:
        if healthy(server):
            raise ValueError(f"{url}: expected an answer, found {error}") from error
        raise ConnectionError(
            f"{url}: expected a server of vLLM, found {error}; once it answers, the same command "
            "goes on where it stopped"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: expected a server of vLLM, found {error}") from error


def healthy(url: str) -> bool:
    """Whether a server is there and its engine lives."""
    try:
        with opened(urllib.request.Request(f"{url}/health"), seconds=5):
            return True
    except OSError:
        return False


def opened(request: urllib.request.Request, *, seconds: float) -> Any:
    """The response; a server on this machine is never asked through a proxy."""
    here = urllib.parse.urlsplit(request.full_url).hostname in ("127.0.0.1", "localhost", "::1")
    around = [urllib.request.ProxyHandler({})] if here else []
    return urllib.request.build_opener(*around).open(request, timeout=seconds)
