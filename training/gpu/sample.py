"""Draws pictures with a model in training, to look at: no cache, no pipeline, no profile.

What ships is measured through the runtime; a test holds that both give the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from ..scenes.transformer import TextToImage

GUIDANCE = 2.5
LINE = 14  # pixels of a line of text
COLUMNS = 6


@torch.inference_mode()
def sample(
    model: TextToImage, vae: BSQVAE, prompts: Sequence[str], guidance: float = GUIDANCE
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] of prompts."""
    device, batch = next(model.parameters()).device, len(prompts)
    ids, mask = (t.to(device).repeat(2, 1) for t in model.words.numbered(prompts))
    dropped = torch.arange(2 * batch, device=device) >= batch
    canvas = torch.zeros(batch, vae.bits, *model.sizes[-1], device=device)
    inputs, lengths = canvas.new_zeros(2 * batch, 0, vae.bits), list[int]()
    for k, (h, w) in enumerate(model.sizes):
        lengths.append(h * w)
        logits = model(ids, mask, dropped, inputs, lengths=lengths)[:, -h * w :].float()
        cond, null = (logits[..., 1] - logits[..., 0]).chunk(2)
        chance = torch.lerp(null, cond, guidance).sigmoid()
        codes = vae.codes(torch.rand_like(chance) < chance).mT.unflatten(2, (h, w))
        canvas = vae.accumulate(canvas, codes)
        if k + 1 < len(model.sizes):
            grown = vae.resize(canvas, tuple(model.sizes[k + 1])).flatten(2).mT
            inputs = torch.cat([inputs, grown.repeat(2, 1, 1)], 1)
    return vae.decode(canvas)


def sheet(images: Tensor, prompts: Sequence[str], title: str) -> Image.Image:
    """Pictures (B, 3, S, S) in [0, 1] in rows, with their prompts below them."""
    side, rows = images.shape[-1], -(-len(images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * side, LINE + rows * (side + LINE)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((2, 0), title, fill="black")
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, (picture, prompt) in enumerate(zip(pixels, prompts, strict=True)):
        x, y = i % COLUMNS * side, LINE + i // COLUMNS * (side + LINE)
        page.paste(Image.fromarray(picture), (x, y))
        draw.text((x + 2, y + side), prompt[: side // 6], fill="black")
    return page


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages one above the other."""
    out = Image.new("RGB", (max(p.width for p in pages), sum(p.height for p in pages)), "white")
    top = 0
    for page in pages:
        out.paste(page, (0, top))
        top += page.height
    return out
