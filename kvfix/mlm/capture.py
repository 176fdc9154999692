"""One forward pass -> features of every asked site, on every image's grid.

Shapes: B samples, L sequence positions, N kept positions (all grids' cells, then text ends), S
    sites of one kind (layers), H, W rows and columns of a grid, C channels, D channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from kvfix.mlm.families import submodule
from kvfix.mlm.language_models import Part
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Encoded, Mlm, Prompt
from kvfix.mlm.prompts import Around

SITES = ("vision", "projector", "hidden", "key", "value")
LM_SITES = ("hidden", "key", "value")


@dataclass(frozen=True, eq=False)
class SampleFeatures:
    """Features of one prompt."""

    # One dict an image: site -> f_SHWC, S = 1 for vision and projector, else one per layer.
    images: list[dict[str, Tensor]]
    layouts: list[Layout]  # one an image; the same grid for all sites
    # Site -> t_SC at the last token of the text, for hidden, key and value; None if not asked.
    text: dict[str, Tensor] | None


def split_heads(f_SHWC: Tensor, n_kv: int) -> Tensor:
    """Take the KV heads of key or value features apart: (S, H, W, n_kv * D) -> (S * n_kv, H, W, D).

    Entry s * n_kv + h is head h of layer s. Text features (S, n_kv * D) become (S * n_kv, D).
    """
    if f_SHWC.shape[-1] % n_kv:
        raise ValueError(
            f"expected channels to divide into {n_kv} heads, found {f_SHWC.shape[-1]} channels"
        )
    return f_SHWC.unflatten(-1, (n_kv, -1)).movedim(-2, 1).flatten(0, 1)


def extract(
    mlm: Mlm,
    prompts: Sequence[Prompt],
    *,
    sites: Iterable[str] = SITES,
    layers: Sequence[int] | None = None,
    rope: bool = False,
    grad: bool = False,
    text: bool = False,
    padding_side: str = "left",
    around: Around | None = None,
) -> list[SampleFeatures]:
    """Run the prompts through the model as one batch and read features; no head, no cache.

    Memory grows with the batch, so give one unit at a time. Sites are out of SITES; layers are
    0-based decoder layers for hidden, key and value, None all. With `rope` keys are as the model
    attends to them, else before RoPE, after a key norm; with `grad` the graph is kept; with `text`
    hidden, key and value are also read at the last token of each text. `around` is held open during
    the pass, such as `kvfix.mlm.intervene`, made for the batch. One entry a prompt, in the model's
    dtype on its device.
    """
    encoded = mlm.encode(prompts, padding_side=padding_side)
    # Not inference mode: what it makes cannot enter a graph, and probes are trained on these
    # features.
    mode = torch.enable_grad() if grad else torch.no_grad()
    cap = Capture(
        *(mlm, encoded), sites=sites, layers=layers, rope=rope, grad=grad, text=text, stop=not grad
    )
    with mode, nullcontext() if around is None else around(encoded), cap:
        with suppress(Whole):
            # The base model stops before the language model's head.
            mlm.base.model(**encoded.inputs, use_cache=False)
        return cap.collect()


class Whole(Exception):
    """Raised in a pass where all that was asked is kept: the rest would be for nothing."""


class Hooks(AbstractContextManager):
    """Hooks for ONE forward pass of one encoded batch; they exist inside the `with` block only."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as setting:
            for handle in self._register():
                setting.callback(handle.remove)
            self._hooks = setting.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the hooks, whatever happened, and let go of what they kept."""
        self._hooks.close()
        self._kept.clear()

    def _register(self) -> Iterable[Any]:
        """Set hook after hook, handing over each handle as soon as it exists."""
        raise NotImplementedError


class Capture(Hooks):
    """Reads features in ONE forward pass of one encoded batch, inside the `with` block only.

        with Capture(mlm, encoded, sites=("value",), grad=True) as cap:
            loss = mlm.model(**encoded.inputs, labels=labels).loss
            samples = cap.collect()

    Inside a hook the grids' cells are copied out and the rest is let go. LoRA counts, because the
    hooks sit on what PEFT puts in place of `k_proj` and `v_proj`.
    """

    def __init__(
        self,
        mlm: Mlm,
        encoded: Encoded,
        *,
        sites: Iterable[str] = SITES,
        layers: Sequence[int] | None = None,
        rope: bool = False,
        grad: bool = False,
        text: bool = False,
        stop: bool = False,
    ):
        """See `extract` for the arguments; `encoded` is the batch that will be run.

        With `stop` the pass ends by `Whole`, as soon as it has come to all that was asked.
        """
        super().__init__()
        self.mlm, self.encoded = mlm, encoded
        self.sites = _check_sites(sites)
        self.layers = _check_layers(layers, mlm.n_layers)
        self.rope, self.grad, self.text = rope, grad, text
        self._forwards = 0
        of_layers = len([site for site in self.sites if site in LM_SITES]) * len(self.layers)
        turned = 2 * len(self.layers) if rope and "key" in self.sites else 0  # cos and sin
        outside = len([site for site in self.sites if site not in LM_SITES])
        self._stops_at = of_layers + turned + outside if stop else None
        self._rows_N = torch.cat(
            [s.first_row + s.layout.rows_HW.flatten() for spans in encoded.images for s in spans]
        )
        self._positions_N = _positions(encoded, text=text)

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._forwards = 0

    def collect(self) -> list[SampleFeatures]:
        """Features of the one pass that ran in the block, one entry a sample; call it inside."""
        if self._forwards != 1:
            raise ValueError(
                "expected collect() inside the Capture block after one forward pass, found "
                f"{self._forwards} passes; open a new block for each"
            )
        samples, cells, rows = [], 0, 0
        for number, spans in enumerate(self.encoded.images):
            images = []
            for span in spans:
                images.append(self._image(span.layout, cells, rows))
                cells += span.layout.index_HW.numel()
                rows += span.layout.rows_HW.numel()
            samples.append(
                SampleFeatures(
                    images=images,
                    layouts=[span.layout for span in spans],
                    text=self._text(number) if self.text else None,
                )
            )
        return samples

    def _image(self, layout: Layout, cells: int, rows: int) -> dict[str, Tensor]:
        """Every site's f_SHWC of the image whose cells and projector rows start there."""
        features = {}
        for site in self.sites:
            if site in LM_SITES:
                f_SNC = self._layers(site, slice(cells, cells + layout.index_HW.numel()))
                features[site] = f_SNC.unflatten(1, layout.grid_hw)
            else:
                f_NC = self._kept[site, 0][rows : rows + layout.rows_HW.numel()].to(self.mlm.device)
                features[site] = _shrink(f_NC.unflatten(0, layout.rows_HW.shape), layout.grid_hw)[
                    None
                ]
        return features

    def _text(self, number: int) -> dict[str, Tensor]:
        """Every LM site's t_SC of a sample; text ends are kept after all cells."""
        at = len(self._positions_N) - len(self.encoded.images) + number
        return {
            site: self._layers(site, slice(at, at + 1)).squeeze(1)
            for site in self.sites
            if site in LM_SITES
        }

    def _layers(self, site: str, at: slice) -> Tensor:
        device = self.mlm.device
        f_SNC = torch.stack([self._kept[site, number][at].to(device) for number in self.layers])
        if site == "key" and self.rope:
            f_SNC = torch.stack(
                [self._rotated(k_NC, n, at) for k_NC, n in zip(f_SNC, self.layers, strict=True)]
            )
        return f_SNC

    def _rotated(self, k_NC: Tensor, number: int, at: slice) -> Tensor:
        mlm = self.mlm
        if not mlm.language_model.rotates(mlm.config.text_config, number):
            return k_NC
        cos_ND, sin_ND = (self._kept[part, number][at].to(mlm.device) for part in ("cos", "sin"))
        return mlm.language_model.rotate(k_NC[None], cos_ND, sin_ND, head_dim=mlm.head_dim)[0]

    def _register(self) -> Iterable[Any]:
        mlm = self.mlm
        yield mlm.base.model.register_forward_pre_hook(self._count, with_kwargs=True)
        if "vision" in self.sites:
            path, merged = mlm.family.merged, mlm.family.patches_a_token(mlm.config)
            at, merged = (submodule(mlm.base, path), 1) if path else (mlm.projector, merged)
            yield at.register_forward_pre_hook(
                lambda module, args: self._keep_rows("vision", args[0], merged)
            )
        if "projector" in self.sites:
            yield mlm.projector.register_forward_hook(
                lambda module, args, output: self._keep_rows("projector", output, 1)
            )
        read: tuple[Part, ...] = ("key", "value")
        for number in self.layers:
            if "key" in self.sites and self.rope:
                yield mlm.layer(number).self_attn.register_forward_hook(
                    self._rope_keeper(number), with_kwargs=True
                )
            if "hidden" in self.sites:
                yield self._hidden_hook(number)
            for site in read:
                if site in self.sites:
                    at = mlm.reading(number, site)
                    yield at.module.register_forward_hook(self._keeper(site, number, at.take))

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse another batch than the encoded one: its image tokens are elsewhere."""
        ids_BL = kwargs.get("input_ids", args[0] if args else None)
        expected = self.encoded.inputs["input_ids"].shape
        if ids_BL is None or ids_BL.shape != expected:
            found = None if ids_BL is None else tuple(ids_BL.shape)
            raise ValueError(
                f"expected a forward pass over the encoded batch, input_ids {tuple(expected)}, "
                f"found {found}"
            )
        self._forwards += 1

    def _hidden_hook(self, number: int) -> Any:
        """Read where the next layer does: models may add something between two layers."""
        keep = self._keeper("hidden", number, _same)
        if number + 1 == self.mlm.n_layers:
            return self.mlm.layer(number).register_forward_hook(keep)
        return self.mlm.layer(number + 1).register_forward_pre_hook(
            lambda module, args: keep(module, args, args[0])
        )

    def _keeper(
        self, site: str, number: int, take: Callable[[Tensor], Tensor]
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self._keep((site, number), take(output).flatten(0, 1), self._positions_N)

        return hook

    def _keep_rows(self, site: str, x: Tensor, merged: int) -> None:
        """Rows on the projector's two sides: (tiles, patches, C), or (patches, C) in Qwen."""
        self._keep((site, 0), x.reshape(-1, merged * x.shape[-1]), self._rows_N)

    def _rope_keeper(self, number: int) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
        batch = self.encoded.inputs["input_ids"].shape[0]

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            # Layers may rotate by angles of their own, as Gemma 3's do.
            for part, x_BLD in zip(("cos", "sin"), kwargs["position_embeddings"], strict=True):
                # Batch 1 stands for all samples where they share their positions.
                x_BLD = x_BLD.expand(batch, -1, -1)
                self._keep((part, number), x_BLD.flatten(0, 1), self._positions_N)

        return hook

    def _keep(self, key: tuple[str, int], x_MC: Tensor, index_N: Tensor) -> None:
        if key in self._kept:
            return  # gradient checkpointing runs layers again in backward
        on = index_N.to(x_MC.device)
        # Checkpointing counts what a layer saves for backward and compares with the second run, in
        # which this copy does not happen: keep it out of the count.
        with saved_tensors_hooks(_same, _same):
            self._kept[key] = (x_MC if self.grad else x_MC.detach()).index_select(0, on)
        if len(self._kept) == self._stops_at:
            raise Whole


def _same(x: Tensor) -> Tensor:
    return x


def _shrink(f_HWC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """What OneVision does to a mosaic past anyres_max_9, by the same call."""
    if f_HWC.shape[:2] == grid_hw:
        return f_HWC
    f_1CHW = f_HWC.movedim(-1, 0)[None]
    return F.interpolate(f_1CHW, list(grid_hw), mode="bilinear")[0].movedim(0, -1)


def _positions(encoded: Encoded, *, text: bool) -> Tensor:
    """Flat positions b * L + l of all grids' cells, image after image, then of the text ends."""
    length = encoded.inputs["input_ids"].shape[1]
    cells = [
        sample * length + span.positions_V[span.layout.index_HW.flatten()]
        for sample, spans in enumerate(encoded.images)
        for span in spans
    ]
    ends_B = torch.arange(len(encoded.images)) * length + encoded.text_end_B
    return torch.cat([*cells, ends_B] if text else cells)


def _check_sites(sites: Iterable[str]) -> tuple[str, ...]:
    asked = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [site for site in asked if site not in SITES]
    if unknown or not asked:
        raise ValueError(f"expected sites out of {', '.join(SITES)}, found {unknown or 'none'}")
    return tuple(site for site in SITES if site in asked)


def _check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong or not layers:
        raise ValueError(f"expected layers 0..{n_layers - 1}, found {wrong or 'none'}")
    return tuple(layers)
