"""A clip as one video: a single pass over all its frames, and where each frame's cells are.

A tower merges `temporal_patch_size` frames into one step, and every step has the grid of an image:
a clip of T steps of H x W cells is laid out as T images are. What a model holds of a frame is what
it holds of the frame's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvfix.mlm.families import FAMILIES, Family
from kvfix.mlm.layout import Layout, LayoutRequest
from kvfix.mlm.prompt import Prompt

_SETTINGS = (
    *("size", "do_resize", "resample", "image_mean", "image_std", "patch_size", "merge_size"),
    *("temporal_patch_size", "cap_pixels_per_frame", "max_video_tokens"),
)


def check_takes_videos(family: Family, processor: Any) -> None:
    """Refuse a family whose videos kvfix has no map of, and a template that knows no videos."""
    if not family.videos:
        known = ", ".join(name for name, row in FAMILIES.items() if row.videos)
        raise ValueError(
            f"expected a family whose videos kvfix maps ({known}), found {family.model_type}; "
            "read its clips frame by frame (--clips frames)"
        )
    parts = [{"type": "video"}, {"type": "text", "text": "x"}]
    rendered = processor.apply_chat_template([{"role": "user", "content": parts}])
    if processor.video_token not in rendered:
        raise ValueError(
            f"expected a chat template that puts {processor.video_token!r} for a part of the form "
            '{"type": "video"}, found one that puts none; read the clips frame by frame (--clips '
            "frames)"
        )


def are_videos(prompts: Sequence[Prompt], family: Family, processor: Any) -> bool:
    """Whether these prompts hold videos.

    Raises:
        ValueError: Some do and some do not, a clip of one frame or of frames of several sizes, or
            a family whose videos kvfix has no map of.
    """
    videos = [prompt for prompt in prompts if prompt.fps is not None]
    if not videos:
        return False
    check_takes_videos(family, processor)
    if len(videos) < len(prompts):
        raise ValueError(
            f"expected prompts of videos or of images, found {len(videos)} of {len(prompts)} with "
            "a video; run them apart"
        )
    for prompt in videos:
        sizes = {frame.size for frame in prompt.images}
        if len(sizes) > 1 or len(prompt.images) < 2:
            raise ValueError(
                f"expected a clip of at least two frames of one size, found {len(prompt.images)} "
                f"of {len(sizes)} sizes"
            )
    return True


def processor_arguments(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What a processor is told so that it takes every frame, at its own time."""
    return {
        "do_sample_frames": False,
        "video_metadata": [
            {
                "total_num_frames": len(prompt.images),
                "fps": prompt.fps,
                "frames_indices": list(range(len(prompt.images))),
            }
            for prompt in prompts
        ],
    }


def layouts_of_clips(
    prompts: Sequence[Prompt], grids_thw: Any, *, processor: Any, config: Any, family: Family
) -> list[list[Layout]]:
    """One layout per step of each clip, all of a clip the same.

    Args:
        prompts: With a video each.
        grids_thw: Rows (steps, rows, columns) of patches that the processor chose.
        processor: The model's.
        config: The Hugging Face config.
        family: Its row of the family table.
    """
    layouts = []
    for prompt, grid in zip(prompts, grids_thw, strict=True):
        width, height = prompt.images[0].size
        alone = grid.clone()
        alone[0] = 1
        [layout] = family.layouts(LayoutRequest([(height, width)], config, processor, alone[None]))
        layouts.append([layout] * int(grid[0]))
    return layouts


def step_of(frame: int, config: Any) -> int:
    """The step that holds a frame, both 0-based."""
    return frame // config.vision_config.temporal_patch_size


def video_settings(processor: Any) -> dict[str, Any]:
    """What of a video processor moves a score."""
    settings = processor.video_processor.to_dict()
    return {name: settings[name] for name in _SETTINGS if name in settings}
