"""What the report says in words about its terms and tasks, for a reader new to both."""

from __future__ import annotations

TASKS = {
    "foreground_segmentation": "Five images come with their object marked; a linear classifier "
    "learned on their features marks the object in a sixth.",
    "cosegmentation": "A group of images shares one kind of object; clustering their features "
    "together must find it, without any label.",
    "semantic_segmentation": "The model reads a class name after the image; image tokens whose "
    "feature resembles that of the name must be the object.",
    "referring_segmentation": "The model reads an expression such as “the striped disc on the "
    "left” after the image; image tokens that resemble it must be the object.",
    "semantic_correspondence": "A keypoint in one image must be found in another image of the same "
    "kind of object, as the place with the most similar feature.",
    "temporal_correspondence": "The objects marked in the first frame of a clip must be followed "
    "through it by the similarity of features.",
    "mcq": "Multiple-choice questions on what is seen.",
    "image_keys": "A key that points the same way whatever the image shows is input-agnostic. The "
    "score is the share of such keys among all image keys of a layer; chance is the share that the "
    "detector flags by mistake.",
}
BY_TEXT = ("semantic_segmentation", "referring_segmentation")
NO_TEXT_OUTSIDE = (
    "The probe compares an image with a text at one and the same stage. The vision encoder and the "
    "projector hold no text, so they have no score here."
)

GLOSSARY = (
    (
        "Stage",
        "A place in the model where features are read. An image passes through the vision "
        "encoder, then the projector, then the layers 0, 1, 2 … of the language model.",
    ),
    (
        "Image token",
        "A position in the language model's input that holds one projected patch of the image. "
        "All scores here are read from image tokens, laid out on their grid over the image.",
    ),
    (
        "Value",
        "What a layer hands on from an image token to the tokens that attend to it (the output of "
        "v_proj). It is what an answer can draw on, and the main curve of this report.",
    ),
    (
        "Key",
        "What decides how much attention an image token gets (the output of k_proj, after the "
        "model's norm of keys if it has one, before the rotary position is applied).",
    ),
    ("Hidden", "The whole state of an image token after a layer."),
    (
        "Probe",
        "A fixed rule that solves a visual task from the features of one stage alone. The model "
        "writes no answer. A high score says that the information is there; a low one says that "
        "this probe does not find it.",
    ),
    ("Chance", "What the probe would score with features that know nothing of the image."),
    (
        "Ceiling",
        "What a perfect prediction would score on this model's grid: a patch of many pixels "
        "cannot follow an outline exactly.",
    ),
    (
        "Random weights (control)",
        "The same architecture with freshly drawn weights. What it scores comes from the pixels "
        "and the architecture, not from training.",
    ),
    (
        "Position only (control)",
        "Features that say where a token is and nothing else. What they score comes from where "
        "objects tend to be.",
    ),
    (
        "Interval",
        "95 % confidence interval by bootstrap. Units that depend on each other (one sequence, "
        "one photo) are drawn together.",
    ),
    (
        "Best layer",
        "Chosen on one half of the units and scored on the other half, so that the score is not "
        "flattered by the choice. A star marks a layer chosen on the very units that score it.",
    ),
)
