"""An answer in pieces, and what its rules ask of a bounded number of them: is it a letter?"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvfix.eval.mcq.letters import words
from kvfix.eval.mcq.letters.suite_rules import EVERY_LETTER, LETTERS, OptionTexts
from kvfix.eval.mcq.letters.text import Token, tokens

REACH: Final = 10  # pieces between a noun and its verb, and between that and the letter
_LONGEST: Final = 40  # pieces of an option's text that are compared
NOTHING: Final = "nothing"  # said in words: none, both, either
SEVERAL: Final = "several"  # alternatives, or an option that there is not


def is_single(text: str) -> bool:
    """Whether a text is one letter of A to Z, in either case."""
    return len(text) == 1 and text.isascii() and text.isalpha()


class Found(NamedTuple):
    """A letter, NOTHING or SEVERAL, and at which piece of the text it stands."""

    what: str
    at: int


class Answer:
    """An answer (plain, without reasoning) cut into pieces, and what its rules share."""

    def __init__(self, text: str, options: OptionTexts):
        self.text = text
        self.pieces = tokens(text)
        self.small = [p.text.casefold() for p in self.pieces]
        self.offered = LETTERS if options is None else EVERY_LETTER[: len(options)]
        self.options = {
            x: [p.text.casefold() for p in _bare(tokens(option))]
            for x, option in zip(EVERY_LETTER, options or (), strict=False)
        }
        self.denied: set[int] = set()  # places of letters that are said to be wrong

    def kind(self, i: int) -> str:
        """Of piece i; the end of a line beyond both ends of the text."""
        return self.pieces[i].kind if 0 <= i < len(self.pieces) else "break"

    def word(self, i: int) -> str:
        """Piece i in small letters; empty beyond both ends of the text."""
        return self.small[i] if 0 <= i < len(self.small) else ""

    def touches(self, i: int) -> bool:
        """Whether pieces i and i + 1 stand together without a space."""
        return 0 <= i < len(self.pieces) - 1 and self.pieces[i].end == self.pieces[i + 1].start

    def bracketed(self, i: int) -> bool:
        """Whether piece i stands in brackets of its own."""
        return self.word(i - 1) in words.OPEN and self.word(i + 1) in words.CLOSE

    def ends(self, i: int) -> bool:
        """Whether a clause ends after piece i."""
        after = self.word(i + 1)
        return self.kind(i + 1) == "break" or after in words.ENDS or self.kind(i + 1) == "cjk"

    def option_at(self, i: int) -> str | None:
        """The option whose text starts at piece i, the longest of several."""
        best = None
        for x, option in self.options.items():
            n = len(option)
            if n and n <= _LONGEST and self.small[i : i + n] == option:
                best = x if best is None or n > len(self.options[best]) else best
        return best

    def letter(self, i: int, *, strict: bool = False, label: bool = False) -> str | None:
        """The letter that piece i writes, of an option or not, or None if it is another word.

        If `strict`, no word may follow but "because" and its like; if `label`, one may follow a
        point at once ("B.the left jar").
        """
        if self.kind(i) != "word":
            return None
        written = self.pieces[i].text
        if not is_single(written):
            return None
        if self.touches(i) and (self.word(i + 1) in words.GLUED or self.kind(i + 1) == "word"):
            return None
        if self.touches(i - 1) and (self.word(i - 1) in words.GLUED or self.word(i - 1) == "."):
            return None
        dotted = self.word(i + 1) == "." and self.touches(i) and self.touches(i + 1)
        if dotted and self.kind(i + 2) == "word" and (len(self.word(i + 2)) == 1 or not label):
            return None
        x = written.upper()
        if self.bracketed(i) or (self.word(i + 1) in words.CLOSE and self.touches(i)):
            return x
        ends = self.ends(i) or (self.word(i + 1) == "(" and x not in "AI")
        if written != x:
            pointed = self.word(i - 1) in words.POINTS and self.kind(i + 1) == "break"
            return x if pointed or (ends and x != "A") else None
        follows = self.word(i + 1) in words.FOLLOWS or self.option_at(i + 1) == x
        if ends or follows:
            return x
        return None if strict or x in "AI" else x

    def also(self, i: int) -> bool:
        """Whether another letter is joined to that of piece i: "A or B", "(A), (B)", "A/B"."""
        j = i + 1
        while j <= i + 3 and (self.word(j) in words.CLOSE or self.word(j) == "."):
            j += 1
        comma = self.word(j) in (",", "、")
        if not comma and self.word(j) not in words.OR and self.word(j) not in words.CJK_OR:
            return False
        j += 1
        if comma and self.word(j) in words.OR:
            comma, j = False, j + 1
        while self.word(j) in words.OPEN or self.word(j) in words.LABELS:
            j += 1
            if j > i + REACH:
                return False
        other = self.pieces[j].text if self.kind(j) == "word" else ""
        if not is_single(other):
            return False
        if other.isupper() != self.pieces[i].text.isupper():
            return False
        return not comma or self.bracketed(j) or self.ends(j) or self.word(j + 1) in words.OR

    def said(self, i: int, *, strict: bool = False) -> str | None:
        """What the letter of piece i amounts to: itself, or SEVERAL; None if it is no letter."""
        x = self.letter(i, strict=strict)
        if x is None:
            return None
        return SEVERAL if x not in self.offered or self.also(i) else x

    def after(self, i: int, *, strict: bool = False) -> Found | None:
        """What is said from piece i on, after the words that announce it."""
        for j in range(i, min(i + REACH, len(self.pieces))):
            small = self.word(j)
            if (x := self.option_at(j)) and not self.single(j):
                return Found(x, j)
            if (what := self.said(j, strict=strict)) is not None:
                return Found(what, j)
            if small in words.NOT:
                return self.deny(j + 1)
            if small in words.NONE:
                return Found(NOTHING, j)
            passes = small in words.FILLERS or small in words.OPEN or small in words.POINTS
            passes = passes or (j == i and small in words.CLOSE)
            if not passes and self.kind(j) not in ("break", "boxed"):
                return None
        return None

    def before(self, i: int) -> list[str]:
        """Up to three words ahead of piece i in its clause."""
        out: list[str] = []
        for j in range(i - 1, i - 4, -1):
            if self.kind(j) == "break" or self.word(j) in words.CLAUSE_ENDS:
                break
            out.append(self.word(j))
        return out

    def asked(self, i: int) -> bool:
        """Whether the letter of piece i ends a question."""
        return "?" in (
            self.word(i + 1),
            self.word(i + 2) if self.word(i + 1) in words.CLOSE else "",
        )

    def found(self, i: int, x: str) -> Found:
        """The letter that piece i writes, if the question offers it."""
        return Found(x if x in self.offered else SEVERAL, i)

    def single(self, i: int) -> bool:
        """Whether piece i is one character."""
        return self.kind(i) == "word" and len(self.word(i)) == 1

    def deny(self, i: int) -> Found | None:
        """Note that the letter after "not" is none; what "not A but B" says, if anything."""
        for j in range(i, i + 4):
            if self.letter(j) is None:
                continue
            self.denied.add(j)
            k = j + 1
            while k < j + 4 and (self.word(k) in words.CLOSE or self.word(k) == ","):
                k += 1
            return self.after(k + 1) if self.word(k) in ("but", "sondern") else None
        return None


def _bare(pieces: list[Token]) -> list[Token]:
    """Without what ends a sentence, and without ends of lines."""
    pieces = [p for p in pieces if p.kind != "break"]
    while pieces and pieces[-1].text in (".", ",", ";"):
        pieces.pop()
    return pieces
