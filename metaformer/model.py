"""The MetaFormer: norm, token mixer, residual, norm, channel MLP, residual (arXiv:2111.11418, Section 3.1).

Whatever the papers vary is an option, and nothing here looks at the type of a mixer. Every module is constructed
under a generator seeded by (seed, its path), so that two models which differ in their mixer start with the same
weights everywhere else, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.block import MetaFormerBlock, MLPHead, PatchEmbed, PositionEmbedding, Stage, make_norm
from metaformer.factory import MixerFactory
from metaformer.mixers import init_weights
from metaformer.seeds import seeded


class MetaFormer(nn.Module):
    """Stem, stages and head: [B, in_chans, H, W] -> [B, num_classes], or [B, C] with `num_classes=0`.

    Args:
        mixer: the mixer of every block, or a sequence with one for each stage: a class or `functools.partial`.
        stem, downsample: kernel, stride and padding of the patch embeddings; `downsample=None` keeps one resolution.
        patch_norm: a norm after the stem's convolution and before the others'.
        bias: in the channel MLPs and in the norms of the blocks.
        layer_scale: initial scale of the branches; res_scale: of the skip paths, for each stage; None for none.
        position: whether stage i begins with a position embedding.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        head: `norm_pool` is the official order of v1: norm on the map, mean over space, linear. `pool_norm` is mean,
            layer norm, linear, as in the v2 family and in timm's v1; `mlp` the same with two layers.
        init: of the patch embeddings: PyTorch's default as in the official v1, or timm's truncated normal(0.02).
        img_size: height and width in pixels that resolution-bound mixers and position embeddings are built for.
        seed: of every initial weight; None draws one from torch's generator.
    """

    def __init__(
        self,
        mixer: MixerFactory | Sequence[MixerFactory],
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratio: float = 4.0,
        stem: Sequence[int] = (7, 4, 2),
        downsample: Sequence[int] | None = (3, 2, 1),
        patch_norm: bool = False,
        norm: str = "group",
        norm_eps: float = 1e-5,
        act: str = "gelu",
        bias: bool = True,
        layer_scale: float | None = 1e-5,
        res_scale: Sequence[float | None] | None = None,
        residual: bool = True,
        channel_mlp: bool = True,
        position: Sequence[bool] | None = None,
        drop_path: float = 0.0,
        head: str = "norm_pool",
        head_dropout: float = 0.0,
        init: str = "official",
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        stages_n = len(depths)
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        mixers = list(mixer) if isinstance(mixer, Sequence) else [mixer] * stages_n
        positions = list(position) if position is not None else [False] * stages_n
        res_scales = list(res_scale) if res_scale is not None else [None] * stages_n
        for name, values in {"dims": dims, "mixer": mixers, "position": positions, "res_scale": res_scales}.items():
            if len(values) != stages_n:
                raise ValueError(f"{name} has {len(values)} values for {stages_n} stages")
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        with seeded(seed, "stem"):
            self.stem = PatchEmbed(in_chans, dims[0], *stem, post_norm=patch_norm, init=init)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        resolution, stride = self.stem.resolution(size), stem[1]
        stages: list[Stage] = []
        self.feature_info: list[dict] = []  # as timm's models describe their stages
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            embed = None
            if i > 0 and downsample is not None:
                with seeded(seed, f"stages.{i}.downsample"):
                    embed = PatchEmbed(dims[i - 1], dim, *downsample, pre_norm=patch_norm, init=init)
                resolution, stride = embed.resolution(resolution), stride * downsample[1]
            blocks = [
                MetaFormerBlock(
                    dim,
                    resolution,
                    mixers[i],
                    mlp_ratio=mlp_ratio,
                    norm=norm,
                    norm_eps=norm_eps,
                    act=act,
                    bias=bias,
                    layer_scale=layer_scale,
                    res_scale=res_scales[i],
                    residual=residual,
                    channel_mlp=channel_mlp,
                    drop_path=next(rates),
                    seed=seed,
                    path=f"stages.{i}.blocks.{j}",
                )
                for j in range(depth)
            ]
            stages.append(Stage(blocks, embed, PositionEmbedding(dim, resolution) if positions[i] else None))
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, dims[-1], dims[-1]
        self.pool_first, self.mlp_head, self.head_dropout = head != "norm_pool", head == "mlp", head_dropout
        self.head_drop = nn.Dropout(0.0 if self.mlp_head else head_dropout)  # the MLP head has its own, between layers
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6) if self.pool_first else make_norm(norm, dims[-1], norm_eps, bias)
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
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool={global_pool}: the head of a MetaFormer pools by 'avg'")
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

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which depth, for layer-wise learning rates: stem, blocks or stages, head."""
        fine = [
            (r"^stages\.(\d+)\.(?:downsample|position)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm\.", (99999,)),
        ]
        return {"stem": r"^stem\.", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Names that do not decay beyond what is one-dimensional: none, as in the official code."""
        return set()

    @classmethod
    def from_pretrained(cls, source: str, name: str | None = None, **options: Any) -> "MetaFormer":
        """A published model with weights from a file or, by its name, from timm; see `metaformer.zoo.load`."""
        from metaformer import zoo

        return zoo.load(source, name, **options)
