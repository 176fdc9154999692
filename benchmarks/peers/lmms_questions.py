"""Multiple choice by lmms-eval's own class for these models: each option, and a written answer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.simple.llava_hf import LlavaHf
from PIL import Image
from serve import serve

torch.set_num_threads(1)
READY: dict[str, Any] = {}


class Processor:
    """A processor that tokenises a text without its images, which transformers 5 refuses.

    lmms-eval 0.7.3 counts a prompt's tokens so. To be deleted when its `llava_hf` no longer does.
    """

    def __init__(self, processor):
        self._processor, self.tokenizer = processor, processor.tokenizer

    def __call__(self, *, text, images=None, **options):
        if images is None:
            return self.tokenizer(text, **options)
        return self._processor(text=text, images=images, **options)


def model_of(path):
    if path not in READY:
        model = LlavaHf(pretrained=path, device="cpu", device_map="cpu", dtype="float32")
        model._image_processor = Processor(model._image_processor)
        READY[path] = model
    return READY[path]


@cache
def image_of(name):
    return Image.open(name).convert("RGB")  # once: the other sides have theirs decoded, too


def images_of(question):
    return [image_of(name) for name in question["images"]]


def run(arrays):
    folder = Path(str(arrays["questions"]))
    questions = json.loads((folder / "questions.json").read_text())
    model = model_of(str(arrays["model"]))
    model.task_dict = {"scenes": {"test": questions}}
    asked: list[Any] = []
    written: list[Any] = []
    for number, question in enumerate(questions):
        at = images_of, number, "scenes", "test"
        meta = {"task": "scenes", "doc_id": number, "repeats": 1}
        for option in question["options"]:
            given = (question["text"], option, *at)
            asked.append(Instance("loglikelihood", given, len(asked), meta))
        settings = {"max_new_tokens": int(arrays["max_new_tokens"])}
        given = (question["text"], settings, *at)
        written.append(Instance("generate_until", given, number, meta))
    losses = iter(loss for loss, _ in model.loglikelihood(asked))  # its first figure is a loss
    texts = model.generate_until(written)
    choices = [np.argmin([next(losses) for _ in q["options"]]) for q in questions]
    return {"choices": choices, "texts": texts}


serve(run)
