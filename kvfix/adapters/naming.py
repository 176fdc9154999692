"""What modules were called before: transformers has renamed them, adapters keep the old names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """How one generation of a library called a family's modules."""

    # What a name began with, and begins with now; the first that fits counts.
    prefixes: tuple[tuple[str, str], ...] = ()

    def now(self, name: str) -> str:
        """Today's name of a module or parameter that had this name."""
        return _replaced(name, self.prefixes)

    def then(self, name: str) -> str:
        """The name that today's module had."""
        return _replaced(name, sorted(((b, a) for a, b in self.prefixes), key=lambda p: -len(p[0])))


TODAY = Naming()
_LLAVA_OUTER = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)
# CLIP and SigLIP towers lost their inner `vision_model` in transformers 5; DINOv2 never had one.
LLAVA_NAMES = (
    # Of transformers 4.52 to 4.57, before 4.52 (twice), and of the original LLaVA code.
    Naming((("model.vision_tower.vision_model.", "model.vision_tower."),)),
    Naming((*_LLAVA_OUTER, ("vision_tower.vision_model.", "model.vision_tower."))),
    Naming((*_LLAVA_OUTER, ("vision_tower.", "model.vision_tower."))),
    Naming(
        (
            ("model.mm_projector.0", "model.multi_modal_projector.linear_1"),
            ("model.mm_projector.2", "model.multi_modal_projector.linear_2"),
            ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
            ("model.image_newline", "model.image_newline"),
            ("model.", "model.language_model."),
        )
    ),
)
# Of transformers before 4.52.
QWEN_NAMES = (Naming((("visual.", "model.visual."), ("model.", "model.language_model."))),)


def naming_of(names: Iterable[str], *, existing: Iterable[str], known: Iterable[Naming]) -> Naming:
    """The first of today's and the known generations in which all these names exist, or today's."""
    there, asked = set(existing), set(names)
    for naming in (TODAY, *known):
        if all(
            naming.now(name) in there and naming.then(naming.now(name)) == name for name in asked
        ):
            return naming
    return TODAY


def _replaced(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
