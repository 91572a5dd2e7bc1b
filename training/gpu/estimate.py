"""What a size costs, by arithmetic: parameters, operations, bytes, and images a second."""

from __future__ import annotations

from dataclasses import dataclass

from stagevar_runtime.families.infinity.blocks import Transformer
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.text.words import WordEncoder

from ..scenes.transformer import kept_lengths
from .settings import BITS, TEXT_LENGTH, Prefix, Size

H100 = 989e12  # bfloat16 operations a second of an H100 SXM, by its data sheet
SHARE = 0.3  # of it
SAVED = 70  # bytes that a block keeps for the way back, a token and a feature


@dataclass(frozen=True)
class Row:
    """One prefix: tokens run, operations of a training image, images a second, bytes kept."""

    scales: int
    batch: int
    tokens: int
    operations: float
    images_s: float
    kept_bytes: float


def forward_operations(size: Size, lengths: list[int]) -> float:
    """Floating-point operations of one forward pass of one image over scales of so many tokens."""
    width, tokens = size.width, sum(lengths)
    products = 2 * tokens * (16 * width**2 * size.depth + 3 * BITS * width)
    text = 2 * TEXT_LENGTH * (2 * width**2 * size.depth)  # keys and values of the text
    products += text - 2 * tokens * 2 * width**2 * size.depth
    pairs, seen = 0, 0
    for length in lengths:
        seen += length
        pairs += length * (seen + TEXT_LENGTH)
    return products + 4.0 * width * size.depth * pairs


def row(size: Size, prefix: Prefix, whole: bool) -> Row:
    """What training on a prefix costs."""
    lengths = [side * side for side in size.sides[: prefix.scales]]
    lengths = lengths if whole or prefix.keep >= 1 else kept_lengths(lengths, prefix.keep)
    operations = 3 * forward_operations(size, lengths)
    kept = SAVED * size.width * size.depth * sum(lengths) * prefix.batch
    return Row(
        *(prefix.scales, prefix.batch, sum(lengths), operations),
        images_s=SHARE * H100 / operations,
        kept_bytes=float(kept),
    )


def table(size: Size, words: int, pictures: int) -> list[str]:
    """Lines that say it; ``pictures``: encoded ones on the device."""
    count = {
        "transformer": sum(p.numel() for p in Transformer(size.transformer()).parameters()),
        "tokenizer": sum(p.numel() for p in BSQVAE(size.tokenizer()).parameters()),
        "words": sum(
            p.numel()
            for p in WordEncoder(
                [str(i) for i in range(words)], TEXT_LENGTH, size.text_width
            ).parameters()
        ),
    }
    total = sum(count.values())
    state = 4 * 4 * (count["transformer"] + count["words"]) / 1e6  # weights, average, gradient, ...
    cached = 2 * BITS * size.sides[-1] ** 2 * pictures / 1e6
    image = forward_operations(size, [side * side for side in size.sides])
    lines = [
        f"size {size.name}: {size.pixels} pixels, scales {' '.join(map(str, size.sides))}, "
        f"{size.tokens()} tokens, the last three "
        f"{1 - size.tokens(len(size.sides) - 3) / size.tokens():.0%}",
        "parameters: " + ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in count.items()),
        f"in half precision {2 * total / 1e6:.1f} MB; drawing an image takes "
        f"{2 * image / 1e9:.0f} GFLOP with both branches",
        f"bytes on the device: {state:.0f} MB of weights, averages and moments, {cached:.0f} MB of "
        f"{pictures} encoded pictures, and what a step keeps:",
        f"{'scales':>8} {'batch':>6} {'tokens':>7} {'GFLOP/image':>12} {'images/s':>9} {'GB':>6}"
        f"   (trained; images/s at {SHARE:.0%} of an H100)",
    ]
    for prefix in size.prefixes:
        for whole in (False, True) if prefix.keep < 1 else (True,):
            r = row(size, prefix, whole)
            lines.append(
                f"{r.scales:>8} {r.batch:>6} {r.tokens:>7} {r.operations / 1e9:>12.1f} "
                f"{r.images_s:>9.0f} {r.kept_bytes / 1e9:>6.1f}"
            )
    return lines
