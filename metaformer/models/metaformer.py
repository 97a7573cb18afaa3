"""The MetaFormer: norm, token mixer, residual, norm, channel MLP, residual (arXiv:2111.11418, Section 3.1).

Whatever the papers vary is an option, and nothing here looks at the type of a mixer. Every module is constructed
under a generator seeded by (seed, its path), so that two models which differ in their mixer start with the same
weights everywhere else, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from metaformer.config.schema import Architecture
from metaformer.config.validate import check_architecture, check_fields
from metaformer.mixers.factory import AnyMixer, MixerFactory, factories, node_of
from metaformer.mixers.layout import init_weights
from metaformer.models.block import MetaFormerBlock, MLPHead, PatchEmbed, PositionEmbedding, Stage, make_norm
from metaformer.system.errors import nearest
from metaformer.system.seeds import seeded

ARCHITECTURE = Architecture.__dataclass_fields__.keys()


class MetaFormer(nn.Module):
    """Stem, stages and head: [B, in_chans, H, W] -> [B, num_classes], or [B, C] with `num_classes=0`.

    Args:
        mixer: the mixer of every block, or a sequence with one for each stage: a class, a `functools.partial`, or the
            name of one in `conf/mixer`, like "pooling"; the name of a hybrid, like "ppaa", is one for each stage.
        num_classes: 0 for no classifier.
        img_size: height and width in pixels that resolution-bound mixers and position embeddings are built for.
        seed: of every initial weight; None draws one from torch's generator.
        options: the fields of `metaformer.config.schema.Architecture`, like `norm="layer"`.

    Raises:
        ConfigError: no mixer has the name, or an option has a value that it cannot have; it says the nearest.
        TypeError: an option that `Architecture` does not have.
        ValueError: another number of mixers than of stages, a mixer that is made already, an image that is too small
            for the stages, or what a mixer says of its options.
    """

    def __init__(
        self,
        mixer: AnyMixer | Sequence[AnyMixer],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(options.keys() - ARCHITECTURE):
            raise TypeError(f"MetaFormer has no option '{unknown[0]}'{nearest(unknown[0], ARCHITECTURE)}")
        listed: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
        a = Architecture(**listed)
        check_fields(a)
        check_architecture(a)
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        with seeded(seed, "stem"):
            self.stem = PatchEmbed(in_chans, a.dims[0], *a.stem, post_norm=a.patch_norm, init=a.init)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        mixers = factories(mixer, len(a.depths))
        stages = make_stages(a, mixers, self.stem.resolution(size), seed)
        nodes = {f"stage{i}": node_of(factory) for i, factory in enumerate(mixers, 1)}
        said = None not in nodes.values()
        self.made_of = {"model": asdict(a), "mixer": nodes, "seed": seed, "shape": [in_chans, *size]} if said else None
        self.stages = nn.Sequential(*stages)
        strides = [a.stem[1] * (a.downsample[1] if a.downsample else 1) ** i for i, _ in enumerate(stages)]
        self.feature_info = [  # as timm's models describe their stages
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(a.dims, strides, strict=True))
        ]
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, a.dims[-1], a.dims[-1]
        self.pool_first, self.mlp_head, self.head_dropout = (
            a.head != "norm_pool",
            a.head == "mlp",
            a.head_dropout or 0.0,
        )
        self.head_drop = nn.Dropout(0.0 if self.mlp_head else self.head_dropout)  # the MLP head has its own
        self.make_norm = partial(make_norm, a.norm, eps=a.norm_eps, bias=a.bias)  # of so many channels
        self.norm = nn.LayerNorm(a.dims[-1], eps=1e-6) if self.pool_first else self.make_norm(a.dims[-1])
        with seeded(seed, "head"):
            self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> the last stage's map [B, C, h, w], before the final norm."""
        return self.stages(self.stem(x))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, C, h, w] -> logits [B, num_classes], or what the classifier is given, [B, C]."""
        pooled = self.norm(features.mean((2, 3))) if self.pool_first else self.norm(features).mean((2, 3))
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    # ------------------------------------------------------------------ what users of timm expect of a model

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes for none. The head always pools by the mean over space."""
        check_pool(global_pool)
        self.num_classes = num_classes
        if num_classes == 0:
            self.head: nn.Module = nn.Identity()
        elif self.mlp_head:
            self.head = MLPHead(self.num_features, num_classes, self.head_dropout)
        else:
            self.head = nn.Linear(self.num_features, num_classes)
            init_weights(self.head)

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what they computed."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of stages [B, C, h, w], after the last one's (before the final norm), as timm's models give them.

        Args:
            indices: so many last stages, or these; None for all.
            norm, output_fmt: are there for timm's interface; maps have no norm and are NCHW.
            stop_early: compute nothing after the last stage that is asked for.
        """
        if norm or output_fmt != "NCHW":
            raise ValueError(f"norm={norm}, output_fmt={output_fmt}: expected False and NCHW")
        wanted = indices if indices is None or isinstance(indices, int) else list(indices)
        taken, _ = feature_take_indices(len(self.stages), wanted)
        x, maps = self.stem(x), list[Tensor]()
        for i, stage in enumerate(self.stages[: max(taken) + 1] if stop_early else self.stages):
            x = stage(x)
            maps += [x] if i in taken else []
        return maps if intermediates_only else (x, maps)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which depth, for layer-wise learning rates: stem, blocks or stages, head."""
        fine = [
            (r"^stages\.(\d+)\.(?:downsample|position)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm\.", (99999,)),
        ]
        return {"stem": r"^stem\.", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Names that do not decay beyond vectors and what is called `bias`: those that its mixers have in a method of
        this name. No mixer of the package has one, and position embeddings decay, as in the official code."""
        return undecayed(self)


def undecayed(net: nn.Module) -> set[str]:
    """What the modules inside a network keep from weight decay, each by a `no_weight_decay()` as timm's models have."""
    inside = ((path, module) for path, module in net.named_modules() if path and hasattr(module, "no_weight_decay"))
    return {f"{path}.{name}" for path, module in inside for name in module.no_weight_decay()}


def check_pool(kind: str | None) -> None:
    """A ValueError for a pooling of timm's that the head does not have."""
    if kind not in (None, "avg"):
        raise ValueError(f"global_pool={kind}: the head of a MetaFormer pools by 'avg'")


def make_stages(a: Architecture, mixers: Sequence[MixerFactory], resolution: tuple[int, int], seed: int) -> list[Stage]:
    """The stages of an architecture, for a stem that puts out a map of `resolution`."""
    stages: list[Stage] = []
    rates = iter(torch.linspace(0, a.drop_path or 0.0, sum(a.depths), device="cpu").tolist())
    for i, (depth, dim, mixer) in enumerate(zip(a.depths, a.dims, mixers, strict=True)):
        embed = None
        if i > 0 and a.downsample is not None:
            with seeded(seed, f"stages.{i}.downsample"):
                embed = PatchEmbed(a.dims[i - 1], dim, *a.downsample, pre_norm=a.patch_norm, init=a.init)
            resolution = embed.resolution(resolution)
        blocks = [
            MetaFormerBlock(
                dim,
                resolution,
                mixer,
                a,
                res_scale=a.res_scale[i] if a.res_scale else None,
                drop_path=next(rates),
                seed=seed,
                path=f"stages.{i}.blocks.{j}",
            )
            for j in range(depth)
        ]
        position = PositionEmbedding(dim, resolution) if a.position and a.position[i] else None
        stages.append(Stage(blocks, embed, position, resolution))
    return stages
