"""Measurements of trained mixers and models, on the same axes for every mixer, linear or not.

Whatever asks for "how much does this output depend on that input" is answered by the Jacobian at real images. Its
blocks are measured by random signs v: the mean of |v J|^2 is the squared Frobenius norm of J, and equals it without any
scatter where a mixer keeps channels apart.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaformer.analysis import stats
from metaformer.models.block import MetaFormerBlock, PatchEmbed
from metaformer.models.metaformer import MetaFormer
from metaformer.system.seeds import seeded

MOST_ROWS = 256  # of a mixing matrix: beyond, output tokens are taken at equal distances
SIGNS = 8  # random sign vectors for each image


def mixing_matrix(mixer: nn.Module, x: Tensor) -> Tensor:
    """How much output token i depends on input token j: |dy_i/dx_j|_F / sqrt(C), [N or MOST_ROWS, N].

    The root of the mean square over the images of `x` [B, C, H, W]. Of a mixer `y_i = sum_j m_ij x_j` it is |m|.
    """
    x = x.repeat(SIGNS, 1, 1, 1).requires_grad_()
    with seeded(0, "signs"):
        signs = torch.randint(0, 2, x.shape[:2], device="cpu").to(x) * 2 - 1
    y = mixer(x)
    tokens = y.shape[2] * y.shape[3]
    rows = torch.linspace(0, tokens - 1, min(tokens, MOST_ROWS)).round().long()
    found = torch.zeros(len(rows), tokens)
    for k, row in enumerate(rows.tolist()):
        asked = torch.zeros_like(y)
        asked[:, :, row // y.shape[3], row % y.shape[3]] = signs
        found[k] = _gradient(y, x, asked).square().sum(1).mean(0).flatten()
    return (found / x.shape[1]).sqrt()


def _gradient(y: Tensor, x: Tensor, asked: Tensor) -> Tensor:
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(y, x, asked, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values' shares: from 1 to the number of rows (Roy and Vetterli, 2007)."""
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def entropy(matrix: Tensor) -> float:
    """Mean entropy of a row as a share of the largest possible: 0 for one token, 1 for all of them alike."""
    shares = matrix.double() / matrix.double().sum(1, keepdim=True).clamp_min(1e-300)
    return float(torch.special.entr(shares).sum(1).mean() / torch.tensor(float(matrix.shape[1])).log())


def mixing_distance(matrix: Tensor, resolution: tuple[int, int]) -> float:
    """Mean distance in tokens over which a token is mixed in, by weight ("attention distance", arXiv:2010.11929)."""
    height, width = resolution
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    rows = torch.linspace(0, len(places) - 1, matrix.shape[0]).round().long()
    shares = matrix.double() / matrix.double().sum(1, keepdim=True).clamp_min(1e-300)
    return float((shares * torch.cdist(places[rows], places)).sum(1).mean())


def spectral_norm(mixer: nn.Module, x: Tensor, steps: int = 50) -> float:
    """The largest factor by which the mixer's Jacobian stretches a change of its input, by power iteration; the mean
    over images."""
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        y = mixer(x)
        if not y.requires_grad:
            return 0.0
        asked = torch.zeros_like(y).requires_grad_()
        (back,) = torch.autograd.grad(y, x, asked, create_graph=True)
        with seeded(0, "power"):
            v = torch.randn(x.shape).to(x)
        stretched = torch.zeros(len(x))
        for _ in range(steps):
            v = v / _norm(v)
            (forward,) = torch.autograd.grad(back, asked, v, retain_graph=True)
            stretched = _norm(forward).flatten()
            (v,) = torch.autograd.grad(y, x, forward.detach(), retain_graph=True)
    return float(stretched.mean())


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)


def receptive_field(part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """How much the token in the middle of a map depends on each pixel, [H, W] (arXiv:1701.04128, of all channels)."""
    images = images.detach().repeat(SIGNS, 1, 1, 1).requires_grad_()
    y = part(images)
    with seeded(0, "signs"):
        signs = torch.randint(0, 2, y.shape[:2], device="cpu").to(y) * 2 - 1
    asked = torch.zeros_like(y)
    asked[:, :, y.shape[2] // 2, y.shape[3] // 2] = signs
    return (_gradient(y, images, asked).square().sum(1).mean(0) / y.shape[1]).sqrt()


def half_area(reach: Tensor) -> float:
    """The smallest share of the pixels that brings half of the response to noise on every pixel; NaN without any."""
    if not reach.any():
        return math.nan
    ordered = reach.double().square().flatten().sort(descending=True).values
    return float(((ordered.cumsum(0) < 0.5 * ordered.sum()).sum() + 1) / ordered.numel())


def patch_box(net: MetaFormer, stage: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels that stem and downsampling alone bring to the token in the middle of a stage's map; all else that it
    depends on, a mixer or a norm has brought."""
    stages = list(net.stages[: stage + 1])
    embeds = [e for e in (net.stem, *(s.downsample for s in stages)) if isinstance(e, PatchEmbed)]
    sizes = [size]
    for embed in embeds:
        sizes.append(embed.resolution(sizes[-1]))
    box = []
    for axis in (0, 1):
        first = last = sizes[-1][axis] // 2
        for embed, below in zip(reversed(embeds), reversed(sizes[:-1]), strict=True):
            first = max(first * embed.stride - embed.padding, 0)
            last = min(last * embed.stride - embed.padding + embed.kernel - 1, below[axis] - 1)
        box.append(slice(first, last + 1))
    return box[0], box[1]


def beyond(reach: Tensor, box: tuple[slice, slice]) -> float:
    """The share of the response to noise on every pixel that comes from outside of a box; NaN without any response."""
    power = reach.double().square()
    return float(1 - power[box].sum() / power.sum())


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same n images, [n, ...] each; 1 is the same up to
    rotation and scale (arXiv:1905.00414, with the unbiased estimator of arXiv:2010.15327, Eq. 3)."""
    return stats.cka(*(gram(features).cpu().numpy() for features in (a, b)))


def gram(features: Tensor) -> Tensor:
    """Products of the features of every two of n images, [n, n] in float64, without those of an image with itself."""
    flat = features.flatten(1).double()
    products = flat @ flat.T / flat.square().sum(1).mean().clamp_min(1e-300)
    return products.fill_diagonal_(0)


def accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that a model, in evaluation mode, gets right."""
    right = images = 0
    with torch.inference_mode():
        for x, labels in batches:
            right += int((net(x).argmax(1) == labels).sum())
            images += len(labels)
    return right / images


class Nothing(nn.Module):
    """In the place of a mixer, it takes the branch away."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@contextmanager
def surgery(net: MetaFormer, stage: int, instead: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """For as long as it lasts, every mixer of a stage replaced by what `instead` makes of it; nothing is trained."""
    blocks: list[MetaFormerBlock] = list(net.stages[stage].blocks)  # type: ignore[arg-type]
    mixers = [block.mixer for block in blocks]
    try:
        for block in blocks:
            block.mixer = instead(block.mixer).eval()
        yield
    finally:
        for block, mixer in zip(blocks, mixers, strict=True):
            block.mixer = mixer


@contextmanager
def watched(modules: Iterable[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The first input and the output of each module, in the order in which they run, of the passes meanwhile."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out))) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def branch_shares(net: MetaFormer, images: Tensor) -> list[list[float]]:
    """|mixer branch| / |skip path| of every block of every stage, each after its scale; the mean over images.

    NaN where a block has no skip path.
    """
    stages: list[list[MetaFormerBlock]] = [list(stage.blocks) for stage in net.stages]  # type: ignore[arg-type]
    blocks = [block for stage in stages for block in stage]
    with (
        torch.no_grad(),
        watched(b.layer_scale1 for b in blocks) as branch,
        watched(b.res_scale1 for b in blocks) as skip,
    ):
        net(images)
    pairs = zip(branch, skip, strict=True) if skip else []
    shares = iter([float((_norm(b) / _norm(s)).mean()) for (_, b), (_, s) in pairs] or [math.nan] * len(blocks))
    return [[next(shares) for _ in stage] for stage in stages]
