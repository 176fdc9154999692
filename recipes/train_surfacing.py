"""Teach a model to say what its image values hold.

    deepspeed recipes/train_surfacing.py                              # the shipped nano, on scenes
    python recipes/train_surfacing.py steps=20 out=/tmp/try           # one process, no DeepSpeed
    deepspeed --num_gpus 8 recipes/train_surfacing.py --config recipes/train_surfacing_7b.yaml \
        model=llava-hf/llava-onevision-qwen2-7b-ov-hf data=train.jsonl zero=2

Every setting stands in the YAML file beside this one; `key=value` changes it, `losses.kl.weight=0`
inside a term.
"""

from recipe_main import main

if __name__ == "__main__":
    main("train_surfacing")
