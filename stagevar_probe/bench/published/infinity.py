"""Infinity's own inference loop, written again as its publishers run it: `bench` compares with it.

It takes the weights of one of our models and none of our engine: keys and values grow by
``torch.cat`` (keys in float32, as rotating makes them), all scales run 2B rows, every block adds
its modulation and projects the text to keys and values again at every scale, as does the head.
In half precision blocks, sampling and the eager decoder run under autocast with a float32 residual,
logits and modulations in float32.

Two things are kinder than what is published, so that a lead over it is not owed to them: text
attention is ``scaled_dot_product_attention`` over padded rows where theirs is flash-attn over
packed ones (the same sums), and what the loop does before every block to save memory
(``gc.collect`` and ``empty_cache``) is left out.

Source of the facts: FoundationVision/Infinity 4c27bbb, ``models/{infinity,basic,fused_op}.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.infinity.schedules import full_extent
from stagevar_runtime.families.parts.rope import infinity_rotations
from stagevar_runtime.loop.engine import Clock
from stagevar_runtime.model.protocol import Conditioning
from stagevar_runtime.model.sampling import Sampling

from .common import Published, decode, draw, norm, plain, plain_copy, strength_at


class PublishedInfinity:
    """The published loop over the weights of ``model``; the decoder is a copy in plain layout."""

    def __init__(self, model: Infinity) -> None:
        self.model = model
        self.decoder: Any = plain_copy(model.tokenizer).decoder
        self.sizes = [(scale.height, scale.width) for scale in model.scales()]
        head_dim = model.config.width // model.config.heads
        extent, mode = full_extent(tuple(self.sizes)), model.settings.rope
        tables = infinity_rotations(self.sizes, extent, head_dim, mode)
        self.rotations = [torch.stack(pair)[:, :, None].to(model.device) for pair in tables]

    @torch.inference_mode()
    def __call__(self, conditioning: Conditioning, sampling: Sampling, seed: int) -> Published:
        """Draw the prompts of ``conditioning`` with one generator for the whole batch."""
        model = self.model
        half = model.dtype != torch.float32
        rows = conditioning.to(model.device).rows(guided=True)
        mask = None if bool(rows["mask"].all()) else rows["mask"][:, None, None]
        clock = Clock(model.device)
        clock.mark()
        with torch.autocast(model.device.type, model.dtype, enabled=half):
            canvas, ids = self._loop(rows["text"], mask, sampling, seed, clock)
            image = decode(self.decoder, canvas)
        clock.mark()
        *scales, decode_ms = clock.spans_ms()
        return Published(image, ids, scales, sum(scales), decode_ms)

    def _loop(
        self,
        text: Tensor,
        mask: Tensor | None,
        sampling: Sampling,
        seed: int,
        clock: Clock,
    ) -> tuple[Tensor, list[Tensor]]:
        model, t, batch = self.model, self.model.transformer, text.shape[0] // 2
        fold, layers = (2 if model.patchify else 1), model.settings.guidance_layer
        rng = torch.Generator(model.device)
        rng.manual_seed(seed)
        text = t.text_norm(text)
        condition = _pool(t.text_proj_for_sos.ca, text, mask)
        text = plain(t.text_proj_for_ca[2], _gelu(plain(t.text_proj_for_ca[0], text)))
        shared = self._shared(condition)
        x = condition[:, None].expand(2 * batch, 1, -1) + t.pos_start.expand(2 * batch, 1, -1)
        caches: list[dict[str, Tensor]] = [{} for _ in model.blocks]
        canvas = x.new_zeros(batch, model.tokenizer.bits, *(fold * s for s in self.sizes[-1]))
        ids = []
        for k, (height, width) in enumerate(self.sizes):
            guidance = strength_at(sampling, k)
            for i, (block, cache) in enumerate(zip(model.blocks, caches, strict=True)):
                if i in (model._level_before or {0}):
                    x = x + t.lvl_embed.weight[k]
                x = _block(block, x, condition, shared, text, mask, self.rotations[k], cache)
                if guidance != 1 and i - len(caches) in layers:
                    x = guidance * x[:batch] + (1 - guidance) * x[batch:]
                    x = torch.cat((x, x))
            if guidance != 1 and 0 in layers:
                logits = self._logits(x, condition).mul(1 / sampling.temperature)
                logits = guidance * logits[:batch] + (1 - guidance) * logits[batch:]
            else:
                logits = self._logits(x[:batch], condition[:batch]).mul(1 / sampling.temperature)
            pairs = logits.reshape(batch, -1, 2)
            bits = draw(pairs, sampling.at(k).top_k, sampling.top_p, rng)
            ids.append(bits.view(batch, height * width, -1))
            codes = self._codes(ids[-1], height, width)
            if k + 1 < len(self.sizes):
                size = (1, *canvas.shape[-2:])
                canvas = canvas + F.interpolate(codes[:, :, None], size, mode="trilinear")[:, :, 0]
                size = (1, *(fold * s for s in self.sizes[k + 1]))
                grid = F.interpolate(canvas[:, :, None], size, mode="trilinear")[:, :, 0]
                grid = F.pixel_unshuffle(grid, 2) if model.patchify else grid
                x = plain(t.word_embed, grid.flatten(2).permute(0, 2, 1)).repeat(2, 1, 1)
            else:
                canvas = canvas + codes
            clock.mark()
        return canvas, ids

    def _shared(self, condition: Tensor) -> Tensor | None:
        if not self.model.config.shared_adaln:
            return None
        layer: Any = self.model.transformer.shared_ada_lin
        with torch.autocast(condition.device.type, enabled=False):
            return plain(layer[1], F.silu(condition.float())).view(len(condition), 1, 6, -1)

    def _logits(self, x: Tensor, condition: Tensor) -> Tensor:
        t: Any = self.model.transformer
        with torch.autocast(x.device.type, enabled=False):
            two = plain(t.head_nm.ada_lin[1], F.silu(condition.float())).view(len(x), 1, 2, -1)
            scale, shift = two.unbind(2)
            return plain(t.head, norm(x.float()).mul(scale.add(1)).add_(shift))

    def _codes(self, bits: Tensor, height: int, width: int) -> Tensor:
        grid = bits.view(len(bits), height, width, -1).permute(0, 3, 1, 2)
        grid = F.pixel_shuffle(grid, 2) if self.model.patchify else grid
        size = self.model.tokenizer.bits**-0.5
        return F.normalize(grid.float() * size * 2 - size, dim=1)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _keys_values(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    bias = torch.cat((torch.zeros_like(attn.v_bias), attn.v_bias))
    kv = F.linear(text, attn.mat_kv.weight, bias).view(*text.shape[:2], 2, attn.heads, -1)
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    return k.contiguous(), v.contiguous()


def _attend(
    attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, mask, scale=scale)
    return plain(attn.proj, y.transpose(1, 2).flatten(2))


def _pool(attn: Any, text: Tensor, mask: Tensor | None) -> Tensor:
    k, v = _keys_values(attn, text)
    q = attn.mat_q[:, :, None].repeat(len(text), 1, 1, 1)
    return _attend(attn, q, k, v, mask, attn.scale)[:, 0]


def _block(
    block: Any,
    x: Tensor,
    condition: Tensor,
    shared: Tensor | None,
    text: Tensor,
    mask: Tensor | None,
    rotation: Tensor,
    cache: dict[str, Tensor],
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        if shared is not None:
            six = block.ada_gss + shared
        else:
            inner = F.silu(condition.to(block.ada_lin[1].weight.dtype))
            six = plain(block.ada_lin[1], inner).view(-1, 1, 6, x.shape[-1])
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
    inner = norm(x).mul(scale1.add(1)).add_(shift1).to(x.dtype)
    x = x + _self_attention(block.sa, inner, rotation, cache).mul(gamma1)
    inner = F.layer_norm(x, x.shape[-1:], block.ca_norm.weight, block.ca_norm.bias, 1e-6)
    q = plain(block.ca.mat_q, inner).unflatten(2, (block.ca.heads, -1)).transpose(1, 2)
    k, v = _keys_values(block.ca, text)
    y = _attend(block.ca, q.contiguous(), k, v, mask, block.ca.scale).float()
    x = x + (y if block.ca_gamma is None else y.mul_(block.ca_gamma))
    inner = norm(x).mul(scale2.add(1)).add_(shift2).to(x.dtype)
    return x + plain(block.ffn.fc2, _gelu(plain(block.ffn.fc1, inner))).mul(gamma2)


def _self_attention(attn: Any, x: Tensor, rotation: Tensor, cache: dict[str, Tensor]) -> Tensor:
    rows, n, _ = x.shape
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    qkv = F.linear(x, attn.mat_qkv.weight, bias).view(rows, n, 3, attn.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scale = attn.scale_mul_1H11.reshape(1, -1, 1, 1).clamp_max(math.log(100)).exp()
    q = F.normalize(q, dim=-1).mul(scale.to(qkv.dtype)).contiguous().to(qkv.dtype)
    k, v = F.normalize(k, dim=-1).contiguous().to(qkv.dtype), v.contiguous()
    q, k = _rotated(torch.stack((q, k)), rotation).unbind(0)
    if cache:
        k, v = torch.cat((cache["k"], k), dim=2), torch.cat((cache["v"], v), dim=2)
    cache["k"], cache["v"] = k, v
    return _attend(attn, q, k, v, None, 1.0)


def _rotated(qk: Tensor, rotation: Tensor) -> Tensor:
    a, b = qk.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.unbind(0)
    return torch.stack((cos * a - sin * b, sin * a + cos * b), dim=-1).flatten(-2)
