"""The multi-scale VQVAE that VAR, Switti, STAR and HART decode with.

Module names equal those of the published checkpoints, so a file loads by name. Everything the
architecture needs is read off tensor shapes: see :meth:`VQVAEConfig.from_tensors`.

Source: VAR (arXiv 2404.02905), ``models/vqvae.py``, ``models/quant.py``, ``models/basic_vae.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError
from ...model.surroundings import undisturbed
from .config import PHI_RATIO, VQVAEConfig, phi_index
from .vqvae_layers import Decoder, Encoder, fill

IGNORED = ("quantize.ema_vocab_hit_SV",)  # codebook usage during training


class Phi(nn.Conv2d):
    """Blend of a feature map with its 3x3 convolution; (B, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, super().forward(h), PHI_RATIO)


class _PartialPhis(nn.Module):
    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels) for _ in range(count))


class _SharedPhi(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qresi = Phi(channels)


class Quantizer(nn.Module):
    """Codebook and phis, under the published names."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.z_channels)
        width = config.z_channels
        if config.sharing == "partial":
            self.quant_resi: nn.Module = _PartialPhis(width, config.phis)
        elif config.sharing == "shared":
            self.quant_resi = _SharedPhi(width)
        elif config.sharing == "separate":
            self.quant_resi = nn.ModuleList(Phi(width) for _ in range(config.phis))

    def phis(self) -> list[nn.Module]:
        """The phi modules in the order of their index; empty without phis."""
        resi = getattr(self, "quant_resi", None)
        if isinstance(resi, _PartialPhis):
            return list(resi.qresi_ls)
        if isinstance(resi, _SharedPhi):
            return [resi.qresi]
        return list(resi) if isinstance(resi, nn.ModuleList) else []

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (N,) of the codebook entries nearest to ``z`` (N, C)."""
        codes = self.embedding.weight.detach()
        distance = z.square().sum(1, keepdim=True) + codes.square().sum(1)
        return distance.addmm_(z, codes.T, alpha=-2).argmin(1)


class VQVAE(nn.Module):
    """Tokenizer of next-scale models: a canvas of features summed over scales.

    Shapes: ids (B, n) long; embedded (B, C, h, w); canvas (B, C, H, W); image (B, 3, H*f, W*f).
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder:
            self.encoder = Encoder(config)
        self.decoder: nn.Module = Decoder(config)
        self.quantize = Quantizer(config)
        width, kernel = config.z_channels, config.quant_kernel
        if config.encoder:
            self.quant_conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> VQVAE:
        """Build from a state dict in the published naming, as float32, ready for inference.

        Args:
            tensors: name to tensor; only names under ``prefix`` are read.
            prefix: what to strip from names, such as ``"vae."``.

        Raises:
            CheckpointError: a tensor is missing, unexpected or of another shape.
        """
        own = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        own = {n: t for n, t in own.items() if n not in IGNORED}
        config = VQVAEConfig.from_tensors(own)
        if not config.encoder:  # an encoder-less file may keep the convolution behind the encoder
            own = {n: t for n, t in own.items() if not n.startswith("quant_conv.")}
        with torch.device("meta"):
            model = cls(config)
        fill(model, own)
        return model.eval().requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        """Codebook entries (B, n, C) of ``ids`` (B, n)."""
        return self.quantize.embedding(ids)

    def refine(self, h: Tensor, index: int, count: int) -> Tensor:
        """Apply the phi of scale ``index`` out of ``count`` to ``h`` (B, C, H, W)."""
        phis = self.quantize.phis()
        return phis[phi_index(index, count, len(phis))](h) if phis else h

    def accumulate(self, canvas: Tensor, embedded: Tensor, index: int, count: int) -> Tensor:
        """Return a new canvas with one scale added.

        Args:
            canvas: (B, C, H, W), left as it is.
            embedded: codebook entries laid out in space (B, C, h, w).
            index: the scale, from 0.
            count: number of scales. The last one is taken at its own size, which is the canvas's.

        Source: VAR ``models/quant.py``, ``get_next_autoregressive_input``.
        """
        return canvas + self._contribution(embedded, canvas.shape[-2:], index, count)

    def _contribution(
        self, embedded: Tensor, size: Sequence[int], index: int, count: int
    ) -> Tensor:
        if index != count - 1:
            embedded = F.interpolate(embedded, size=tuple(size), mode="bicubic")
        return self.refine(embedded, index, count)

    def shrink(self, canvas: Tensor, size: tuple[int, int]) -> Tensor:
        """Average ``canvas`` down to (B, C, h, w): what the next scale reads."""
        return F.interpolate(canvas, size=size, mode="area")

    @undisturbed()
    def decode(self, canvas: Tensor) -> Tensor:
        """Image (B, 3, H*f, W*f) in [0, 1] of a canvas (B, C, H, W)."""
        z = self.post_quant_conv(canvas).contiguous(memory_format=torch.channels_last)
        return self.decoder(z).clamp(-1, 1).mul(0.5).add(0.5).contiguous()

    def features(self, image: Tensor) -> Tensor:
        """Unquantised features (B, C, H, W) of an image (B, 3, H*f, W*f) in [0, 1].

        Raises:
            CheckpointError: the file this was loaded from has no encoder.
        """
        if not self.config.encoder:
            raise CheckpointError(
                "this VQVAE was loaded from a file without an encoder, so it can decode only. "
                "Load the full tokenizer file to encode images"
            )
        return self.quant_conv(self.encoder(image * 2 - 1))

    def encode(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Token ids, one (B, h*w) tensor per scale, of an image in [0, 1].

        Args:
            image: (B, 3, H*f, W*f).
            sizes: (h, w) of every scale, coarse to fine; the last must be (H, W).
        """
        rest = self.features(image)
        size = tuple(rest.shape[-2:])
        if tuple(sizes[-1]) != size:
            raise ValueError(f"the last scale is {tuple(sizes[-1])}, the image's features {size}")
        ids = []
        for index, (h, w) in enumerate(sizes):
            z = rest if index == len(sizes) - 1 else self.shrink(rest, (h, w))
            ids.append(self.quantize.nearest(z.permute(0, 2, 3, 1).flatten(0, 2)).view(-1, h * w))
            rest = rest - self._contribution(
                self._lay_out(ids[-1], (h, w)), size, index, len(sizes)
            )
        return ids

    def codes_to_canvas(self, ids: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Canvas (B, C, H, W) of the ids of every scale, each (B, h*w)."""
        canvas = self.quantize.embedding.weight.new_zeros(
            ids[0].shape[0], self.config.z_channels, *sizes[-1]
        )
        for index, (scale_ids, size) in enumerate(zip(ids, sizes, strict=True)):
            canvas = self.accumulate(canvas, self._lay_out(scale_ids, size), index, len(sizes))
        return canvas

    def _lay_out(self, ids: Tensor, size: tuple[int, int]) -> Tensor:
        return self.embed(ids).transpose(1, 2).unflatten(2, size)
