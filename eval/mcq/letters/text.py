"""What of a written answer is the answer: reasoning is cut off, and the rest comes as words.

Everything here takes time linear in the text: each pattern is one class of characters with one
repetition, or has a length that is bounded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Final, NamedTuple

# Names of the tags, in any case, within which a model thinks, and within which it answers.
_THINKING = (
    "think|thinking|thought|thoughts|reason|reasoning|analysis|reflection|scratchpad|caption|summary"
    "|begin_of_thought|end_of_thought"
)
_ANSWERING = "answer|ans|final_answer|final|conclusion|begin_of_box|end_of_box"
# <think>, </think>, [THINK], ◁think▷, <|begin_of_box|>, <seed:think>, <answer id="1">.
_TAG = re.compile(
    rf"[<\[◁](?P<close>[|/]{{0,2}})(?:[a-z]{{1,10}}:)?(?P<name>{_THINKING}|{_ANSWERING})"
    r"(?:\s[^<>\[\]◁▷]{0,80})?[|/]?[>\]▷]",
    re.IGNORECASE,
)
# Channels of the harmony format: analysis, commentary, final.
_CHANNEL = re.compile(r"<\|channel\|>(\w{1,20})[^<>]{0,80}<\|message\|>")
# Chat and sentencepiece marks that detokenisers leave in, and marks of layout.
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:pad|unk|bos|eos|image|(?:start|end)_of_turn)>|\[/?INST\]"
    r"|</?(?:b|i|u|em|strong|code|span|sup|sub)>"
)
_BREAKS = re.compile(r"</?(?:br|p|div|li|ul|ol|h[1-6])\s?/?>", re.IGNORECASE)
_FENCE = re.compile(r"\s*```(?:json|JSON)?")
# Where an object of JSON says what was chosen, best first.
_KEYS: Final = ("final_answer", "answer", "choice", "option", "letter", "prediction", "selected")
_LARGEST_JSON: Final = 100_000

_JOINER: Final = "\u2024"  # stands for the point of a number, so that "1.5" is one word
_CJK: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"


def _shapes() -> dict[int, str | None]:
    """Full-width, circled, bracketed and mathematical letters and marks as plain ones."""
    table: dict[int, str | None] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    enclosed = [*range(0x249C, 0x24EA), *range(0x1F110, 0x1F12A), *range(0x1D400, 0x1D6A4)]
    for code in enclosed:
        table[code] = unicodedata.normalize("NFKC", chr(code))
    for start in (0x1F130, 0x1F150, 0x1F170):  # squared and filled, which NFKC leaves alone
        table.update({start + i: f"({chr(ord('A') + i)})" for i in range(26)})
    table.update(dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xFE0F), None))
    pairs = (
        ("【「『〔〖《〈", "("),
        ("】」』〕〗》〉", ")"),
        ("‘’´", "'"),
        ("“”„«»", '"'),
        ("。．", "."),
    )
    for marks, plain in pairs:
        table.update({ord(mark): plain for mark in marks})
    return table


_SHAPES: Final = _shapes()
_NUMBER = re.compile(r"(?<=\d)[.,](?=\d)")


class Token(NamedTuple):
    """A piece of a text as it is written, and where it stands.

    Its kind is ``word`` (letters of one script, with hyphens and apostrophes within), ``cjk`` (a
    run of Chinese, Japanese or Korean), ``mark`` (one character), ``boxed`` (LaTeX's command, ahead
    of its braces) or ``break`` (one or more ends of lines).
    """

    kind: str
    text: str
    start: int
    end: int


_TOKEN = re.compile(
    r"(?P<boxed>\\(?:boxed|fbox|framebox)(?![A-Za-z]))|(?P<command>\\[A-Za-z]+)|(?P<space>\s+)"
    rf"|(?P<cjk>[{_CJK}]+)|(?P<word>(?:[^\W_{_CJK}]|['\-\u0300-\u036f{_JOINER}])+)|(?P<mark>.)",
    re.DOTALL,
)
_DECORATION = frozenset('*_`~$"#|\\^')


def tokens(text: str) -> list[Token]:
    """The pieces of a plain text; spaces, quotation marks and marks of layout leave no piece."""
    text = _NUMBER.sub(_JOINER, text).replace("--", "\u2014")
    out: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, found, start = str(match.lastgroup), match[0], match.start()
        if kind == "space":
            lines = max(found.count("\n"), found.count("\r"))
            if lines and out:
                out.append(Token("break", "\n" * lines, start, match.end()))
        elif kind == "word":
            bare = found.strip("'-")
            start += len(found) - len(found.lstrip("'-"))
            if bare:
                out.append(Token(kind, bare, start, start + len(bare)))
            elif "-" in found:
                out.append(Token("mark", "-", start, match.end()))
        elif kind == "mark":
            if found not in _DECORATION:
                out.append(Token(kind, found, start, match.end()))
        elif kind != "command":
            out.append(Token(kind, found, start, match.end()))
    while out and out[-1].kind == "break":
        out.pop()
    return out


def plain(text: str) -> str:
    """A text without the marks of tokenizers and layout, its letters in their ordinary shape."""
    return _BREAKS.sub("\n", _SPECIAL.sub(" ", text.translate(_SHAPES)))


def scopes(text: str) -> tuple[str, ...]:
    """The parts of an answer in which a letter is to be sought: plain texts, all of equal right.

    What a model only thought is left out, also where it never stopped thinking. Where it marked its
    answers by tags or by a key of JSON, they are all that counts.
    """
    text = text.translate(_SHAPES)
    channels = _CHANNEL.split(text)
    if len(channels) > 1:
        said = [
            s for name, s in zip(channels[1::2], channels[2::2], strict=True) if name == "final"
        ]
        text = said[-1].partition("<|end|>")[0] if said else ""
    spoken, answers = _outside_thoughts(text)
    found = answers or (spoken,)
    return tuple(plain(_from_json(part)) for part in found)


def _outside_thoughts(text: str) -> tuple[str, tuple[str, ...]]:
    """What stands outside of all thoughts, and between answer tags, also in a thought without an
    end.
    """
    spoken: list[str] = []
    answers: list[tuple[str, bool]] = []  # and whether it stands in a thought that is still open
    depth, opened, at = 0, -1, 0
    for tag in _TAG.finditer(text):
        name = tag["name"].lower()
        closes = "/" in tag["close"] or name.startswith("end_of")
        before = text[at : tag.start()]
        if not depth:
            spoken.append(before)
        if name in _THINKS:
            if not closes:
                depth += 1
            else:
                if not depth:  # its start stood in the prompt: all so far was thought
                    spoken, answers = [], []
                depth = max(depth - 1, 0)
                if not depth:
                    answers = [(a, False) for a, inside in answers if not inside]
            opened = -1
        elif not closes:
            opened = tag.end()
        elif opened >= 0:
            answers.append((text[opened : tag.start()], depth > 0))
            opened = -1
        at = tag.end()
    if not depth:
        spoken.append(text[at:])
        if opened >= 0:
            answers.append((text[opened:], False))
    return "\n\n".join(spoken), tuple(a for a, _ in answers)


_THINKS = frozenset(_THINKING.split("|"))


def _from_json(text: str) -> str:
    """What an object of JSON says under one of the keys of an answer; else the text itself."""
    bare = text.strip().removesuffix("```")
    if match := _FENCE.match(bare):
        bare = bare[match.end() :]
    bare = bare.strip()
    if not bare.startswith("{") or not bare.endswith("}") or len(bare) > _LARGEST_JSON:
        return text
    try:
        value = json.loads(bare, strict=False)
    except (ValueError, RecursionError):
        return text
    named = {str(key).strip().lower().replace(" ", "_"): v for key, v in value.items()}
    for key in _KEYS:
        if (said := named.get(key)) is not None:
            if isinstance(said, list) and len(said) == 1:
                [said] = said
            # A number or a list of several is an answer too, though none that names a letter.
            return said if isinstance(said, str) else json.dumps(said)
    return text
