"""Teacher forcing for the runtime's own Infinity modules, with gradients.

All scales run at once: a scale sees itself and the ones before it. A batch may stop at any scale,
so that most of training can be spent on the cheap scales where a picture's content is decided.

Bits are flipped at random before they enter the canvas, and targets are recomputed, so that the
model learns to correct itself. Source: Infinity (arXiv 2412.04431), section 3.3.

Shapes: B images, L tokens of the scales used, d bits, T words, C width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagevar_runtime.families.infinity.blocks import (
    Block,
    CrossAttention,
    InfinityConfig,
    Transformer,
)
from stagevar_runtime.families.parts.layers import MAX_LOG_SCALE
from stagevar_runtime.families.parts.rope import at_positions, infinity_rotations
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.kernels.heads import rotate_pairs
from stagevar_runtime.kernels.linear import Linear
from stagevar_runtime.text.words import WordEncoder

from ..products import linear

Sizes = Sequence[tuple[int, int]]
Segment = tuple[int, int, Tensor | None]  # queries from, to; mask over the keys before `to`
TOGETHER = 100  # tokens: the first scales share one masked attention
LARGE = 150  # tokens from which a scale may be trained on part of them


@torch.no_grad()
def teacher(
    vae: BSQVAE, features: Tensor, sizes: Sizes, count: int, flips: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Inputs (B, L - 1, d) of every scale but the first, and target bits (B, L, d).

    Args:
        features: (B, d, H, W) of the encoder.
        sizes: (h, w) of every scale.
        count: scales to use.
        flips: probability (B,) that a bit is flipped before it enters the canvas.
    """
    size = (features.shape[-2], features.shape[-1])
    rest, canvas = features, torch.zeros_like(features)
    inputs, targets = [], []
    for k, (h, w) in enumerate(sizes[:count]):
        small = rest if (h, w) == size else F.interpolate(rest, size=(h, w), mode="area")
        bits = small > 0
        targets.append(bits.flatten(2).mT)
        if k + 1 == count:
            break
        if flips is not None:
            bits = bits ^ (torch.rand_like(small) < flips[:, None, None, None])
        grown = vae.resize(vae.codes(bits.movedim(1, -1)).movedim(-1, 1), size)
        canvas, rest = canvas + grown, rest - grown
        inputs.append(vae.resize(canvas, tuple(sizes[k + 1])).flatten(2).mT)
    return torch.cat(inputs, 1), torch.cat(targets, 1).long()


@torch.no_grad()
def importance(features: Tensor, sizes: Sizes, plain: float = 0.2) -> Tensor:
    """Weights (B, L) of the loss, 1 on average over a scale: things count more than the ground.

    By the squared distance of features from the picture's median; ``plain`` is what every token
    has at least.
    The bits of a plain ground are mostly noise, and most tokens are ground.

    Args:
        features: (B, d, H, W) of the encoder.
        sizes: (h, w) of the scales used.
    """
    median = features.flatten(2).median(2).values[:, :, None, None]
    far = (features - median).square().sum(1, keepdim=True)
    far = far / far.mean((2, 3), keepdim=True)
    parts = []
    for h, w in sizes:
        grid = F.interpolate(far, size=(h, w), mode="area").flatten(1)
        parts.append(plain + (1 - plain) * grid / grid.mean(1, keepdim=True))
    return torch.cat(parts, 1)


def kept_lengths(lengths: Sequence[int], keep: float) -> list[int]:
    """How many tokens of every scale are run when ``keep`` of the large ones' are."""
    return [n if n < LARGE else round(keep * n) for n in lengths]


def some_tokens(weights: Tensor, lengths: Sequence[int], keep: float) -> Tensor:
    """Token numbers (B, L'), rising, drawn by weight (B, L) at large scales; small ones keep all.

    Training on part of the tokens costs less a picture; all of them follow at the end. Source:
    MaskDiT (arXiv 2306.09305), section 3.3; there the draw is uniform.
    """
    parts, start = [], 0
    wanted = kept_lengths(lengths, keep)
    for length, count, part in zip(lengths, wanted, weights.split(list(lengths), 1), strict=True):
        if length < LARGE:
            own = torch.arange(length, device=weights.device).expand(len(weights), -1)
        else:
            own = part.multinomial(count).sort(1).values
        parts.append(own + start)
        start += length
    return torch.cat(parts, 1)


class TextToImage(nn.Module):
    """The word encoder and the transformer, trained together."""

    def __init__(self, config: InfinityConfig, words: WordEncoder, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.words, self.sizes = config, words, sizes
        self.transformer = Transformer(config)
        self.run_block = run_block  # what a compiler may replace
        rotations = infinity_rotations(sizes, sizes[-1], config.width // config.heads)
        self.register_buffer("cos", torch.cat([c for c, _ in rotations], 1), persistent=False)
        self.register_buffer("sin", torch.cat([s for _, s in rotations], 1), persistent=False)
        lengths = [h * w for h, w in sizes]
        level = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.register_buffer("level", level, persistent=False)
        initialise(self)

    def segments(self, lengths: Sequence[int]) -> list[Segment]:
        """Which queries attend together: the small scales at once, then one scale each."""
        ends = [0, *itertools.accumulate(lengths)]
        small = max(end for end in ends if end <= TOGETHER)
        level = self.level[:small]
        first: Segment = (0, small, level[:, None] >= level[None, :])
        later = ends[ends.index(small) :]
        return [first, *((a, b, None) for a, b in itertools.pairwise(later))]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        dropped: Tensor,
        inputs: Tensor,
        kept: Tensor | None = None,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """Logits (B, L, d, 2) of word numbers (B, T); ``dropped`` (B,) see no text.

        ``kept`` (B, L'): numbers of the only tokens that are run, as many of a scale in every row:
        ``lengths``, which is counted if it is not given.
        """
        t, config = self.transformer, self.config
        length = inputs.shape[1] + 1
        text = self.words(ids, mask)
        null = t.cfg_uncond[: mask.shape[1]] * mask[..., None]
        text = t.text_norm(torch.where(dropped[:, None, None], null, text))
        bias = mask[:, None, None]
        condition = t.text_proj_for_sos.ca.pool(text, bias)
        text = t.text_proj_for_ca(text)
        shared = t.shared_ada_lin(condition).unflatten(1, (1, 6, -1))
        start = condition[:, None] + t.pos_start
        x = torch.cat([start, t.word_embed(inputs)], 1) + t.lvl_embed(self.level[:length])
        rotation, level = (self.cos[:, :length], self.sin[:, :length]), self.level[:length]
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
            rotation, level = at_positions(rotation, kept), level[kept[0]]
        segments = self.segments(lengths or level.bincount().tolist())
        for block in t.in_order():
            x = self.run_block(
                block, x, block.modulation(condition, shared), text, bias, rotation, segments
            )
        factor, shift = t.head_nm.ada_lin(condition).unflatten(1, (1, 2, -1)).unbind(2)
        x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), factor + 1)
        return linear(x, t.head.weight, t.head.bias).unflatten(2, (config.bits, 2))


def run_block(
    block: Block,
    x: Tensor,
    modulation: tuple[Tensor, ...],
    text: Tensor,
    mask: Tensor,
    rotation: tuple[Tensor, Tensor],
    segments: Sequence[Segment],
) -> Tensor:
    """One block over all tokens (B, L, C); the runtime's forward without its cache."""
    gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
    width = x.shape[-1:]
    h = torch.addcmul(shift1, F.layer_norm(x, width, eps=1e-6), scale1)
    sa = block.sa
    bias = torch.cat([sa.q_bias, sa.zero_k_bias, sa.v_bias])
    qkv = linear(h, sa.mat_qkv.weight, bias).unflatten(2, (3, sa.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    scale = sa.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
    q = rotate_pairs(F.normalize(q, dim=-1) * scale, rotation)
    k = rotate_pairs(F.normalize(k, dim=-1), rotation)
    attended = [
        F.scaled_dot_product_attention(
            q[:, :, a:b], k[:, :, :b], v[:, :, :b], attn_mask=seen, scale=1.0
        )
        for a, b, seen in segments
    ]
    y = torch.cat(attended, 2).transpose(1, 2).flatten(2)
    x = torch.addcmul(x, linear(y, sa.proj.weight, sa.proj.bias), gamma1)
    ca: CrossAttention = block.ca
    assert isinstance(ca.mat_q, Linear)
    keys, values = ca.keys_values(text)
    q = linear(block.ca_norm(x), ca.mat_q.weight, ca.mat_q.bias)
    q = q.unflatten(2, (ca.heads, -1)).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=ca.scale)
    x = x + linear(y.transpose(1, 2).flatten(2), ca.proj.weight, ca.proj.bias)
    h = torch.addcmul(shift2, F.layer_norm(x, width, eps=1e-6), scale2)
    ffn = block.ffn
    h = F.gelu(linear(h, ffn.fc1.weight, ffn.fc1.bias), approximate="tanh")
    return torch.addcmul(x, linear(h, ffn.fc2.weight, ffn.fc2.bias), gamma2)


@torch.no_grad()
def initialise(model: TextToImage) -> None:
    """Small residual branches that start open, which learns fast in a short training."""
    t, depth = model.transformer, model.config.depth
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.7 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for parameter in (t.pos_start, t.cfg_uncond, model.words.position):
        nn.init.normal_(parameter, std=0.3)
    pool = t.text_proj_for_sos.ca
    assert isinstance(pool.mat_q, nn.Parameter)
    nn.init.normal_(pool.mat_q, std=0.5)
    for block in t.in_order():
        block.sa.scale_mul_1H11.fill_(math.log(4.0))
        for projection in (block.sa.proj, block.ca.proj, block.ffn.fc2):
            projection.weight.div_(math.sqrt(2 * depth))
        block.ada_gss.normal_(std=0.02)
        block.ada_gss[:, :, :2] += 1.0
    t.shared_ada_lin[1].weight.mul_(0.1)
    t.head_nm.ada_lin[1].weight.mul_(0.1)
    t.head.weight.mul_(0.1)


def parameters_by_use(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices between hidden features, then everything else: inputs, outputs, vectors."""
    outer = ("emb", "position", "head.", "cfg_uncond")
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and not any(part in name for part in outer)
        (hidden if inner else others).append(parameter)
    return hidden, others
