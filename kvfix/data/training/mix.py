"""In which shares examples of scenes are mixed; a recipe's YAML says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvfix.bounds import check_numbers, number


@dataclass(frozen=True)
class Shares:
    """How often each kind of example comes in a round of all of them."""

    question: int = number(1, least=0, most=1000)  # a multiple-choice question about pictures
    talk: int = number(1, least=0, most=1000)  # a conversation about a picture
    named: int = number(1, least=0, most=1000)  # a text that names something, and its mask
    pair: int = number(1, least=0, most=1000)  # two views with matched points

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Skills:
    """How often each kind of question comes in a round of all of them; 0 holds a kind out."""

    Art_Style: int = number(1, least=0, most=1000)
    Counting: int = number(1, least=0, most=1000)
    Jigsaw: int = number(1, least=0, most=1000)
    Object_Localization: int = number(1, least=0, most=1000)
    Relative_Depth: int = number(1, least=0, most=1000)
    Semantic_Correspondence: int = number(1, least=0, most=1000)
    Spatial_Relation: int = number(1, least=0, most=1000)
    Visual_Correspondence: int = number(1, least=0, most=1000)
    Visual_Similarity: int = number(1, least=0, most=1000)

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class SceneMix:
    """The shares of kinds of example, and of kinds of question among the questions."""

    examples: Shares = field(default_factory=Shares)
    questions: Skills = field(default_factory=Skills)

    def __post_init__(self) -> None:
        if not self.round or (self.examples.question and not self.asked):
            raise ValueError("expected a share above 0 in examples and in questions, found none")

    @property
    def round(self) -> tuple[str, ...]:
        """Kinds of example, each as often as its share says."""
        return _repeated(self.examples)

    @property
    def asked(self) -> tuple[str, ...]:
        """Kinds of question, each as often as its share says."""
        return _repeated(self.questions)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Kinds of question that a training never sees."""
        return tuple(skill for skill, share in vars(self.questions).items() if not share)


def _repeated(shares: Shares | Skills) -> tuple[str, ...]:
    return tuple(name for name, share in vars(shares).items() for _ in range(share))
