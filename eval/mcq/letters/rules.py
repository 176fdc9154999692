r"""Which option a written answer states: an ordered table of rules, each linear in the text.

| rule | reads | example |
|---|---|---|
| whole | a text that is nothing but a letter | ``**(b)**`` |
| final | ``\boxed{...}`` and "final answer" | ``\boxed{\text{B}}`` |
| stated | a sentence that says so, a letter alone on the first or last line | "It is B, not (A)" |
| leading | a label at the start | "B, because (A) is darker" |
| mentioned | the one letter in brackets of the last paragraph, else of the whole | "so (B)" |
| named | the text of exactly one option | "the left jar" |

The first rule that finds a letter decides. Two different ones by the same rule, alternatives ("A or
B") and letters that the question does not offer leave the answer unparsed, but for a later
statement that takes an earlier one back ("no, the answer is B").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from kvfix.eval.mcq.letters import words
from kvfix.eval.mcq.letters.pieces import (
    NOTHING,
    REACH,
    SEVERAL,
    Answer,
    Found,
    is_single,
)
from kvfix.eval.mcq.letters.suite_rules import (
    EVERY_LETTER,
    LETTERS,
    UNPARSED,
    Letter,
    OptionTexts,
    only,
)


def read(text: str, options: OptionTexts) -> Letter:
    """The letter that a plain text states, mentions or names, or UNPARSED."""
    answer = Answer(text, options)
    nothing = False
    for rule in RULES:
        if nothing and rule is not _named:
            continue
        found = rule(answer)
        if found and max(found, key=lambda f: f.at).what == NOTHING:
            found = [f for f in found if f.what == NOTHING]
        letters = {f.what for f in found} - {NOTHING}
        if len(letters) > 1:
            said = [f for f in found if f.what != NOTHING]
            return _corrected(answer, said) if rule in (_final, _stated) else UNPARSED
        if letters:
            return _offered(letters.pop(), answer)
        nothing = nothing or bool(found)
    return UNPARSED


def _offered(what: str, answer: Answer) -> Letter:
    return what if what in max(LETTERS, answer.offered, key=len) else UNPARSED


def _corrected(answer: Answer, found: Sequence[Found]) -> Letter:
    """The last of different letters, if what stands before it takes the ones before back."""
    found = sorted(found, key=lambda f: f.at)
    last = found[-1]
    others = [f.at for f in found if f.what != last.what]
    between = answer.small[others[-1] + 1 : last.at]
    return _offered(last.what, answer) if not words.CORRECTS.isdisjoint(between) else UNPARSED


def _whole(answer: Answer) -> list[Found]:
    said = [i for i, p in enumerate(answer.pieces) if p.kind not in ("mark", "break", "boxed")]
    if len(said) != 1 or not is_single(answer.pieces[said[0]].text):
        return []
    [i] = said
    if any(
        answer.touches(j) and answer.word(k) in words.GLUED for j, k in ((i, i + 1), (i - 1, i - 1))
    ):
        return []
    return [answer.found(i, answer.pieces[i].text.upper())]


def _final(answer: Answer) -> list[Found]:
    boxes = [answer.after(i + 1) for i, p in enumerate(answer.pieces) if p.kind == "boxed"]
    return [*(f for f in boxes if f), *_by_noun(answer, final=True)]


def _stated(answer: Answer) -> list[Found]:
    found = [*_by_noun(answer, final=False), *_by_verb(answer), *_by_verdict(answer)]
    found += [*_by_cjk(answer), *_alone(answer)]
    return [f for f in found if f.at not in answer.denied and not answer.asked(f.at)]


def _by_noun(answer: Answer, *, final: bool) -> list[Found]:
    """Read "the correct answer is B", "Answer: B", and "Answer" as a heading of B."""
    out = []
    for i, noun in enumerate(answer.small):
        if noun not in words.NOUNS:
            continue
        before = answer.before(i)
        if (not words.FINAL.isdisjoint([*before, noun])) is not final:
            continue
        if not words.SUPPOSE.isdisjoint(before):
            continue
        told = (answer.after(start, strict=loose) for start, loose in _connected(answer, i))
        found = next(filter(None, told), None)
        if found and not words.WRONG.isdisjoint(before):
            answer.denied.add(found.at)
        elif found:
            out.append(found)
    return out


def _connected(answer: Answer, i: int) -> Iterator[tuple[int, bool]]:
    """From where on the noun at piece i is told, and whether any words stood between."""
    if answer.kind(i + 1) == "break" and answer.kind(i - 1) == "break":
        yield i + 2, False
        return
    loose = False
    for j in range(i + 1, i + 1 + REACH):
        small = answer.word(j)
        loose = loose or (small in words.RELATIVE and j == i + 1)
        if small in words.POINTS or small in words.COPULAS:
            yield j + 1, loose
            if not loose:
                return
        elif small in words.NOT:
            if small in ("isn't", "isnt", "wasn't"):
                answer.deny(j + 1)
            return
        else:
            passes = loose or small in words.LINKS or small in (",", "(", ")")
            stops = (
                small in words.MAYBE or small in words.SENTENCE_ENDS or answer.kind(j) == "break"
            )
            if stops or not passes:
                return


def _by_verb(answer: Answer) -> list[Found]:
    """Read "I choose B", "I would go with option (B)", "it is B.", "Therefore, B"."""
    out = []
    for i, verb in enumerate(answer.small):
        here = verb in words.HERE
        if not here and verb not in words.VERBS:
            continue
        j = i + 1
        if here:
            while j < i + 4 and (answer.word(j) in words.BE or answer.word(j) == ","):
                j += 1
        found = answer.after(j, strict=True)
        if found is None or (found.what == NOTHING and here):
            continue
        if verb in words.SAYS and "break" in map(answer.kind, range(i, found.at)):
            continue
        before = answer.before(i)
        if not words.NOT.isdisjoint(before):
            answer.denied.add(found.at)
        elif words.SUPPOSE.isdisjoint(before) and words.MAYBE.isdisjoint(before):
            out.append(found)
    return out


def _by_verdict(answer: Answer) -> list[Found]:
    """Read "B is the correct answer", and that A is none from "(A) is wrong"."""
    out = []
    for i, piece in enumerate(answer.pieces):
        x = piece.text.upper()
        if not answer.single(i) or not (answer.bracketed(i) or x == piece.text):
            continue
        before = answer.word(i - 2 if answer.word(i - 1) in words.OPEN else i - 1)
        if before.isalpha() and before not in words.BEFORE:
            continue  # "point B", "image B": not the letter of an option
        verdict = _verdict(answer, i + 2 if answer.word(i + 1) in words.CLOSE else i + 1)
        if verdict is False:
            answer.denied.add(i)
        elif verdict and words.SUPPOSE.isdisjoint(answer.before(i)):
            joined = answer.word(i - 1) in words.OR or answer.word(i - 2) in words.OR
            out.append(Found(SEVERAL, i) if joined else answer.found(i, x))
    return out


def _verdict(answer: Answer, i: int) -> bool | None:
    """Whether "is right" or "is wrong" follows at piece i; None if neither."""
    if answer.word(i) not in words.BE:
        return None
    denied = False
    for j in range(i + 1, i + 7):
        small = answer.word(j)
        denied = denied or small in words.NOT
        if small in words.RIGHT:
            return not denied
        if small in words.WRONG:
            return None if denied else False
        if small not in words.BETWEEN | words.NOT | words.BE:
            return None
    return None


def _by_cjk(answer: Answer) -> list[Found]:
    out = []
    for i, piece in enumerate(answer.pieces):
        if piece.kind != "cjk":
            continue
        if piece.text.endswith(words.CJK_DENIES):
            answer.deny(i + 1)
        elif piece.text.endswith(words.CJK_STATES) and (found := answer.after(i + 1)):
            out.append(found)
    return out


def _alone(answer: Answer) -> list[Found]:
    """A letter that is all of the first or the last line, but in a list of letters."""
    breaks = [i for i, p in enumerate(answer.pieces) if p.kind == "break"]
    if not breaks:
        return []
    bounds = [-1, *breaks, len(answer.pieces)]
    lines = [range(a + 1, b) for a, b in pairwise(bounds)]
    out = []
    for line, beside in ((lines[0], lines[1]), (lines[-1], lines[-2])):
        found = _line(answer, line)
        if found and not (_line(answer, beside) and len(lines) > 2):
            out.append(found)
    return out


def _line(answer: Answer, line: range) -> Found | None:
    if len(line) > 6:
        return None
    said = [i for i in line if answer.kind(i) != "mark"]
    if len(said) != 1 or not answer.single(said[0]):
        return None
    x = answer.letter(said[0])
    return None if x is None else answer.found(said[0], x)


def _leading(answer: Answer) -> list[Found]:
    """A label at the start: "B. the left jar", "B: ...", "B, because ...", "B - ..."."""
    i = 0
    while i < 3 and (answer.word(i) in words.OPEN or answer.word(i) in words.LABELS):
        i += 1
    x = answer.letter(i, strict=True, label=True)
    if x is None or not answer.pieces[i].text.isupper() or i in answer.denied:
        return []
    told = answer.word(i + 1) in words.BECAUSE or answer.option_at(i + 1) == x
    if answer.bracketed(i):
        told = answer.word(i + 2) in words.BECAUSE | {*":,\u2014\u2013-"}
        told = told or answer.option_at(i + 2) == x
        if not told and answer.kind(i + 2) != "break":
            return []
    elif not told and answer.word(i + 1) not in words.LABEL_MARKS:
        return []
    inner = next((j for j in range(i + 1, i + 5) if answer.kind(j) == "word"), i)
    other = answer.letter(inner, strict=True)
    if answer.also(i) or other not in (None, x):  # "A: B" may mean the answer B
        return [Found(SEVERAL, i)]
    if x not in answer.offered:
        return []
    # One label of several is a list of the options, not an answer.
    for j, piece in enumerate(answer.pieces[:-1]):
        if piece.kind == "break":
            k = j + 2 if answer.word(j + 1) in words.OPEN else j + 1
            other = answer.pieces[k].text if k < len(answer.pieces) else ""
            labels = len(other) == 1 and other in EVERY_LETTER and answer.word(k + 1) in (*".):",)
            if labels and other != x:
                return []
    return [Found(x, i)]


def _mentioned(answer: Answer) -> list[Found]:
    last = _last_paragraph(answer)
    found = []
    for i in range(len(answer.pieces)):
        labelled = answer.word(i - 1) in words.LABELS and answer.pieces[i].text.isupper()
        if not answer.bracketed(i) and not (labelled and answer.letter(i) is not None):
            continue
        x = answer.pieces[i].text
        if len(x) != 1 or x not in answer.offered or i in answer.denied:
            continue
        before = [answer.word(j) for j in range(i - 4, i)]
        if "than" in before and not words.OTHER.isdisjoint(before):
            continue
        if "than" in before:  # what the chosen one is compared with, or the other way round
            found.append(Found(SEVERAL, i))
        elif not _refused(answer, i):
            found.append(Found(x, i))
    if (x := only(f.what for f in found if f.at >= last)) is not UNPARSED:
        return [Found(x, last)]
    return found


def _last_paragraph(answer: Answer) -> int:
    """Where it starts; 0 if there is one only."""
    pieces = enumerate(answer.pieces)
    return max((i for i, p in pieces if p.kind == "break" and len(p.text) > 1), default=0)


def _refused(answer: Answer, i: int) -> bool:
    """Whether a "not" stands close before piece i, in its clause."""
    for j in range(i - 1, i - 5, -1):
        if answer.word(j) in words.NOT:
            return True
        if answer.word(j) in (".", ",", ";", "!", "?") or answer.kind(j) == "break":
            return False
    return False


def _named(answer: Answer) -> list[Found]:
    """The one option whose text occurs as whole words; of nested texts the longer one is meant."""
    last = _last_paragraph(answer)
    for start in dict.fromkeys((last, 0)):
        found = _names(answer, start)
        if len({f.what for f in found}) == 1:
            return found
    return [Found(SEVERAL, 0)] if found else []


def _names(answer: Answer, start: int) -> list[Found]:
    # Pieces are parted by a character that no piece holds, so that only whole ones match.
    pieces = zip(answer.small[start:], answer.pieces[start:], strict=True)
    kept = (small.replace("\0", " ") for small, piece in pieces if piece.kind != "break")
    text = "\0" + "\0".join(kept) + "\0"
    out = []
    for x in sorted(answer.options, key=lambda x: -len(answer.options[x])):
        if not answer.options[x]:
            continue
        parts = text.split("\0" + "\0".join(answer.options[x]) + "\0")
        if any(words.NOT.isdisjoint(part.split("\0")[-4:]) for part in parts[:-1]):
            out.append(Found(x, start))
        text = "\0 \0".join(parts)
    return out


Rule = Callable[[Answer], list[Found]]
RULES: Final[tuple[Rule, ...]] = (_whole, _final, _stated, _leading, _mentioned, _named)
