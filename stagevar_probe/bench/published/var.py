"""VAR's own inference loop, written again as its publishers run it: what `bench` compares with.

It takes the weights of one of our models and none of our engine: keys and values grow by
``torch.cat``, all scales run 2B rows, every block computes its modulation again at every scale,
sampling sorts the whole vocabulary, blocks and decoder run eagerly in the default memory layout.
Attention is ``scaled_dot_product_attention``, which the published code picks by itself when
neither flash-attn nor xformers is there (``models/basic_var.py``); the decoder's is two ``bmm``.
In half precision it runs under autocast with a float32 residual, as the published demo does.

Source of the facts: FoundationVision/VAR 78b9539, ``models/{var,basic_var,quant,basic_vae}.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime.families.tokenizers.config import phi_index
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import Clock
from stagevar_runtime.model.protocol import Conditioning
from stagevar_runtime.model.sampling import Sampling

from .common import Published, decode, draw, norm, plain, plain_copy, strength_at


class PublishedVAR:
    """The published loop over the weights of ``model``; the decoder is a copy in plain layout."""

    def __init__(self, model: VAR) -> None:
        self.model = model
        self.tokenizer: Any = plain_copy(model.tokenizer)

    @torch.inference_mode()
    def __call__(self, conditioning: Conditioning, sampling: Sampling, seed: int) -> Published:
        """Draw the labels of ``conditioning`` with one generator for the whole batch."""
        model, labels = self.model, conditioning.cond["labels"]
        half = model.dtype != torch.float32
        clock = Clock(model.device)
        clock.mark()
        with torch.autocast(model.device.type, model.dtype, enabled=half):
            canvas, ids = self._loop(labels.to(model.device), sampling, seed, clock)
            image = decode(self.tokenizer.decoder, self.tokenizer.post_quant_conv(canvas))
        clock.mark()
        *scales, decode_ms = clock.spans_ms()
        return Published(image, ids, scales, sum(scales), decode_ms)

    def _loop(
        self, labels: Tensor, sampling: Sampling, seed: int, clock: Clock
    ) -> tuple[Tensor, list[Tensor]]:
        t, sides, batch = self.model.transformer, self.model.config.sides, labels.shape[0]
        rng = torch.Generator(labels.device)
        rng.manual_seed(seed)
        levels = [torch.full((s * s,), k, device=labels.device) for k, s in enumerate(sides)]
        position = (t.lvl_embed(torch.cat(levels)) + t.pos_1LC).float()
        nulls = torch.full_like(labels, self.model.config.classes)
        condition = t.class_emb(torch.cat((labels, nulls))).float()
        first = sides[0] ** 2
        x = condition[:, None].expand(2 * batch, first, -1) + t.pos_start + position[:, :first]
        canvas = x.new_zeros(batch, self.model.config.code_width, sides[-1], sides[-1])
        caches: list[dict[str, Tensor]] = [{} for _ in t.blocks]
        ids, done = [], 0
        for k, side in enumerate(sides):
            done += side * side
            shared = (
                plain(t.shared_ada_lin[1], F.silu(condition)).view(2 * batch, 1, 6, -1)
                if self.model.config.shared_adaln
                else None
            )
            for block, cache in zip(t.blocks, caches, strict=True):
                x = _block(block, x, condition, shared, cache)
            logits = self._logits(x, condition)
            strength = strength_at(sampling, k) * (k / max(1, len(sides) - 1))
            logits = (1 + strength) * logits[:batch] - strength * logits[batch:]
            drawn = draw(logits, sampling.at(k).top_k, sampling.top_p, rng)
            ids.append(drawn)
            codes = self.tokenizer.embed(drawn).transpose(1, 2).reshape(batch, -1, side, side)
            canvas = self._add(canvas, codes, k)
            if k + 1 < len(sides):
                after = sides[k + 1]
                grid = F.interpolate(canvas, size=(after, after), mode="area")
                x = plain(t.word_embed, grid.view(batch, canvas.shape[1], -1).transpose(1, 2))
                x = x + position[:, done : done + after * after]
                x = x.repeat(2, 1, 1)
            clock.mark()
        return canvas, ids

    def _logits(self, x: Tensor, condition: Tensor) -> Tensor:
        t = self.model.transformer
        head = plain(t.head_nm.ada_lin[1], F.silu(condition)).view(len(x), 1, 2, -1)
        scale, shift = head.unbind(2)
        normed = norm(x.float()).mul(scale.add(1)).add_(shift)
        return plain(t.head, normed.float()).float()

    def _add(self, canvas: Tensor, codes: Tensor, k: int) -> Tensor:
        count = len(self.model.config.sides)
        if k < count - 1:
            codes = F.interpolate(codes, size=tuple(canvas.shape[-2:]), mode="bicubic")
        phis = self.tokenizer.quantize.phis()
        phi: Any = phis[phi_index(k, count, len(phis))]
        smooth = F.conv2d(codes, phi.weight, phi.bias, padding=1)
        return canvas.add_(codes.mul(0.5) + smooth.mul_(0.5))


def _block(
    block: Any, x: Tensor, condition: Tensor, shared: Tensor | None, cache: dict[str, Tensor]
) -> Tensor:
    if shared is not None:
        six = block.ada_gss + shared
    else:
        six = plain(block.ada_lin[1], F.silu(condition)).view(-1, 1, 6, x.shape[-1])
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
    inner = norm(x).mul(scale1.add(1)).add_(shift1)
    x = x + _self_attention(block.attn, inner, cache).mul_(gamma1)
    inner = norm(x).mul(scale2.add(1)).add_(shift2)
    hidden = F.gelu(plain(block.ffn.fc1, inner), approximate="tanh")
    return x + plain(block.ffn.fc2, hidden).mul(gamma2)


def _self_attention(attn: Any, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
    rows, n, width = x.shape
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    qkv = F.linear(x, attn.mat_qkv.weight, bias).view(rows, n, 3, attn.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if attn.scale_mul_1H11 is not None:
        q = F.normalize(q, dim=-1).mul(attn.scale_mul_1H11.clamp_max(math.log(100)).exp())
        k = F.normalize(k, dim=-1)
    if cache:
        k, v = torch.cat((cache["k"], k), dim=2), torch.cat((cache["v"], v), dim=2)
    cache["k"], cache["v"] = k, v
    y = F.scaled_dot_product_attention(q, k, v.to(k.dtype), scale=attn.scale)
    return plain(attn.proj, y.transpose(1, 2).reshape(rows, n, width))
