"""Clips as videos: painted frames, cached values, times, and scores of every frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from commands import call
from painted import GREY, painted, without_mixing
from PIL import Image
from transformers import DynamicCache

from kvfix.data.scenes.units import clip
from kvfix.eval.metrics.boundary import boundary_f
from kvfix.eval.metrics.davis import region_j
from kvfix.eval.probes.tasks import temporal_correspondence
from kvfix.eval.source import MlmSource
from kvfix.mlm.capture import Capture, extract
from kvfix.mlm.families import FAMILIES
from kvfix.mlm.images.clips import step_of
from kvfix.mlm.load import Mlm, Prompt
from kvfix.mlm.renamed import cache_argument

VIDEOS = [name for name, row in FAMILIES.items() if row.videos]
every_video = pytest.mark.parametrize("name", VIDEOS)
SIZE = (32, 56)
FRAMES = tuple(tiny.photo(*SIZE, seed=seed) for seed in range(5))  # the last step is half padding


def _prompts() -> list[Prompt]:
    return [
        Prompt(FRAMES, "a cat", fps=24.0),
        Prompt(tuple(tiny.photo(48, 40, seed=s) for s in (7, 8)), "two dogs?", "Look: ", 24.0),
    ]


@every_video
def test_a_painted_cell_of_a_frame_is_the_cell_of_its_step_that_changes(name, load) -> None:
    mlm = load(name)
    without_mixing(mlm)
    blank = Image.fromarray(np.full((*SIZE, 3), GREY, dtype=np.uint8))

    def look(*clips: tuple[Image.Image, ...]) -> list[torch.Tensor]:
        prompts = [Prompt(frames, "x", fps=24.0) for frames in clips]
        return [
            torch.stack([step["vision"][0] for step in sample.images])
            for sample in extract(mlm, prompts, sites=("vision",))
        ]

    [before_THWC] = look((blank,) * 5)
    layout = mlm.encode([Prompt((blank,) * 5, "x", fps=24.0)]).images[0][0].layout
    assert before_THWC.shape[:3] == (3, *layout.grid_hw) and len(layout.ys_H) >= 2
    for frame in range(5):
        for row in range(layout.grid_hw[0]):
            cells = [(row, col) for col in range(layout.grid_hw[1])]
            clips = []
            for cell in cells:
                frames = [blank] * 5
                frames[frame] = painted(SIZE, layout, *cell)
                clips.append(tuple(frames))
            for cell, after_THWC in zip(cells, look(*clips), strict=True):
                changed_THW = (after_THWC - before_THWC).norm(dim=-1)
                found = np.unravel_index(int(changed_THW.argmax()), changed_THW.shape)
                assert found == (frame // 2, *cell) == (step_of(frame, mlm.config), *cell)


@pytest.mark.parametrize("side", ["left", "right"])
@every_video
def test_values_and_keys_of_a_clip_are_the_cached_ones(name, side, load) -> None:
    mlm = load(name)
    encoded = mlm.encode(_prompts(), padding_side=side)
    cache = DynamicCache()
    given = {cache_argument(mlm.base.model): cache}
    with torch.no_grad(), Capture(mlm, encoded, rope=True) as cap:
        mlm.base.model(**encoded.inputs, **given, use_cache=True)
        samples = cap.collect()
    for number, (sample, steps) in enumerate(zip(samples, (3, 1), strict=True)):
        at_N = (encoded.inputs["input_ids"][number] == mlm.config.video_token_id).nonzero()[:, 0]
        at_THW = at_N.view(steps, *sample.layouts[0].grid_hw)
        assert len(sample.images) == steps
        for layer in range(mlm.n_layers):
            values, keys = (
                x[number].transpose(0, 1)[at_THW].flatten(-2)
                for x in (cache.layers[layer].values, cache.layers[layer].keys)
            )
            for step, features in enumerate(sample.images):
                assert torch.equal(features["value"][layer], values[step])
                torch.testing.assert_close(features["key"][layer], keys[step], atol=1e-5, rtol=0)


@every_video
def test_what_the_language_model_is_given_of_a_frame_is_its_projected_step(name, load) -> None:
    mlm = load(name)
    encoded = mlm.encode(_prompts())
    given = {}
    hook = mlm.lm.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    samples = extract(
        mlm, _prompts(), sites=("projector", "value")
    )  # a pass ends with its last site
    hook.remove()
    for number, spans in enumerate(encoded.images):
        for step, span in enumerate(spans):
            at_HW = span.positions_V[span.layout.index_HW]
            projected = samples[number].images[step]["projector"][0]
            assert torch.equal(projected, given["inputs_embeds"][number][at_HW])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_frames_stand_at_their_times(name, load) -> None:
    """As M-RoPE has them (Qwen2.5-VL), or as text before each step (Qwen3-VL)."""
    mlm = load(name, dtype=torch.bfloat16)
    slow, fast = (mlm.encode([Prompt(FRAMES * 2, "x", fps=fps)]) for fps in (2.0, 24.0))
    text = mlm.processor.tokenizer.decode(slow.inputs["input_ids"][0])
    if name == "qwen3_vl":
        # The mean time of the two frames of a step, printed with one decimal.
        assert all(f"<{t} seconds>" in text for t in (0.2, 1.2, 2.2, 3.2, 4.2))
        return
    # In bfloat16 a twelfth of a second would be 0.0835.
    assert fast.inputs["second_per_grid_ts"].tolist() == pytest.approx([1 / 12], abs=1e-8)
    rate = mlm.config.vision_config.tokens_per_second
    for encoded, seconds in ((slow, 1), (fast, 1 / 12)):
        names = ("input_ids", "mm_token_type_ids", "attention_mask", "video_grid_thw")
        given = {name: encoded.inputs[name] for name in (*names, "second_per_grid_ts")}
        positions_3BL, _ = mlm.base.model.get_rope_index(**given)
        at = [int(positions_3BL[0, 0, span.positions_V[0]]) for span in encoded.images[0]]
        assert [x - at[0] for x in at] == [int(step * seconds * rate) for step in range(len(at))]


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Mlm:
    from kvfix.mlm.load import load_mlm

    return load_mlm(str(checkpoint("qwen3_vl")))


def test_j_and_f_of_a_clip_are_those_of_its_frames(model: Mlm) -> None:
    unit = clip("test", 0)
    source = MlmSource(model, kinds=("value",), position=False, clips="video")
    score = temporal_correspondence(unit, source, ("value", 1))["value"]
    assert score.kept is not None and len(score.kept) == len(unit.frames) - 1
    predicted, true = (torch.as_tensor(np.stack(x)) for x in (score.kept[1:], unit.masks[1:-1]))
    for k in range(int(unit.masks[0].max())):
        pairs = [(p[None] == k + 1, t == k + 1) for p, t in zip(predicted, true, strict=True)]
        for name, measure in (("J_SO", region_j), ("F_SO", boundary_f)):
            by_frame = [float(measure(mine, gold)) for mine, gold in pairs]
            assert score.extra[name][1, k] == pytest.approx(np.mean(by_frame))


def test_frames_of_a_step_share_their_features_and_others_do_not(model: Mlm) -> None:
    source = MlmSource(model, kinds=("value",), position=False, clips="video")
    views = [view.features["value"] for view in source.clip(FRAMES, fps=24.0)]
    assert len(views) == 5
    assert torch.equal(views[0], views[1]) and not torch.allclose(views[1], views[2])
    alone = MlmSource(model, kinds=("value",), position=False)
    apart = [view.features["value"] for view in alone.clip(FRAMES, fps=24.0)]
    assert not torch.allclose(apart[0], apart[1])


def test_a_diagnosis_draws_a_clip_however_it_is_read(checkpoint, tmp_path: Path) -> None:
    only = ("--only", "flow", "--task", "temporal_correspondence", "--limit", 1, "--no-control")
    for clips in ("frames", "video"):
        words = ("--model", checkpoint("qwen2_vl"), *only, "--clips", clips)
        ended = call("diagnose", *words, "--out", tmp_path / clips)
        assert ended.code == 0 and "not drawn" not in ended.err, ended.err
        assert json.loads((tmp_path / clips / "run.json").read_text())["overlays"]


def test_the_command_reads_clips_as_videos_and_says_so(checkpoint, tmp_path: Path) -> None:
    asked = ("--task", "temporal_correspondence", "--limit", 1, "--clips", "video")
    run = tmp_path / "run"
    ended = call("eval", "--model", checkpoint("qwen3_vl"), *asked, "--out", run)
    assert ended.code == 0, ended.err
    record = json.loads((run / "run.json").read_text())
    assert record["fingerprint"]["clips"]["read_as"] == "video"
    assert "frames 1 to 2, 3 to 4 and so on share their features" in record["notes"][0]
    assert {row["metric"] for row in record["results"]} >= {"J&F"}
    again = call("eval", "--model", checkpoint("qwen3_vl"), *asked[:-2], "--out", run)
    assert again.code == 1 and "clips.read_as: then 'video', now None" in again.error
    other = call("eval", "--model", checkpoint("llava"), *asked, "--out", tmp_path / "other")
    assert other.code == 1
    assert "expected a family whose videos kvfix maps (qwen2_vl, qwen2_5_vl" in other.error
    assert "found llava; read its clips frame by frame" in other.error


def test_what_is_no_clip(model: Mlm, load) -> None:
    for prompts, says in (
        ([Prompt(FRAMES[:1], "x", fps=24.0)], "at least two frames of one size, found 1 of 1"),
        ([Prompt((FRAMES[0], tiny.photo(9, 9)), "x", fps=24.0)], "found 2 of 2 sizes"),
        ([Prompt(FRAMES, "x", fps=24.0), Prompt(FRAMES, "x")], "found 1 of 2 with a video"),
    ):
        with pytest.raises(ValueError, match=says):
            model.encode(prompts)
    with pytest.raises(ValueError, match="found gemma3; read its clips frame by frame"):
        MlmSource(load("gemma3"), clips="video")
    bare = load("qwen2_vl")
    bare.processor.chat_template = bare.processor.chat_template.replace("<|video_pad|>", "")
    with pytest.raises(ValueError, match=r"puts '<\|video_pad\|>' for a part of the form"):
        MlmSource(bare, clips="video")
