"""Suppress image keys that depend on no image, so that late text looks at those that do.

    deepspeed recipes/train_artifacts.py                              # the shipped nano, on scenes
    python recipes/train_artifacts.py steps=20 out=/tmp/try           # one process, no DeepSpeed

The keys are measured on training images before the first step. Every setting stands in the YAML
file beside this one; `key=value` changes it.
"""

from recipe_main import main

if __name__ == "__main__":
    main("train_artifacts")
