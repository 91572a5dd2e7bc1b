"""Matrix products: one function in front of the kernels that differ by device.

On a CPU PyTorch sends float32 products to MKL, which runs at about half speed on some processors
(measured on a Zen 5: 90 GFLOP/s a core against 200 with oneDNN, which PyTorch carries too and uses
for convolutions). Without gradients we ask oneDNN for them; results differ by rounding only.
:func:`pack` lays weights out as oneDNN reads them: early scales have few rows, so that they spend
their time reading weights, 16 GB/s as stored and 33 GB/s packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .product import Product

PACK_LIMIT = 2 * 2**30  # bytes: VAR-d16 is packed, d20 and larger keep one copy


class LowRankLinear(NamedTuple):
    """Stands in for a weight ``(d_out, d)`` and its bias: r directions of the input, then the rest.

    ``down`` ``(r, d)``, ``up`` ``(d_out, r)``, ``bias`` ``(d_out,)``; see ``options/low_rank.py``.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None


StandIn = LowRankLinear | Product
LowRankLayers = Mapping[str, StandIn]
"""What stands in for the layers of one block, by their names: of low rank, or in fewer bits."""

WHOLE: LowRankLayers = {}


@cache
def _onednn() -> Callable[..., Tensor] | None:
    """PyTorch's own oneDNN product with a fused activation, where this build has it."""
    if not torch.backends.mkldnn.is_available():
        return None
    found: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else found.default


@cache
def _packable() -> tuple[torch.dtype, ...]:
    """The types whose products oneDNN computes on this processor."""
    half = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return (torch.float32, torch.bfloat16) if half is not None and half() else (torch.float32,)


def backend(device: torch.device, dtype: torch.dtype) -> str:
    """Which library computes :func:`linear` without gradients: ``onednn`` or ``torch``."""
    plain = device.type != "cpu" or dtype not in _packable() or _onednn() is None
    return "torch" if plain or not torch.backends.mkldnn.enabled else "onednn"


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gelu: bool = False,
    narrow: StandIn | None = None,
) -> Tensor:
    """``x @ weightᵀ + bias``, then a tanh-approximated GELU if asked. Shapes as ``F.linear``.

    ``narrow`` is taken in place of weight and bias.
    """
    if narrow is not None:
        if not isinstance(narrow, LowRankLinear):
            return narrow(x, gelu)
        x, weight, bias = linear(x, narrow.down), narrow.up, narrow.bias
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if eager and backend(x.device, x.dtype) == "onednn":
        product = _onednn()
        assert product is not None
        weight = _packed(weight)
        return product(x, weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def gelu_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, narrow: StandIn | None = None
) -> Tensor:
    """The definition of a layer with a tanh-approximated GELU behind it."""
    return linear(x, weight, bias, gelu=True, narrow=narrow)


def fused_gelu_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, narrow: StandIn | None = None
) -> Tensor:
    """As :func:`gelu_linear`, bias and GELU in the product's own kernel (CUDA)."""
    if isinstance(narrow, LowRankLinear):
        x, weight, bias = linear(x, narrow.down), narrow.up, narrow.bias
    elif narrow is not None:
        return narrow(x, True)
    if bias is None or torch.is_grad_enabled():
        return gelu_linear(x, weight, bias)
    y = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return y.unflatten(0, x.shape[:-1])


@torch.no_grad()
def pack(module: nn.Module) -> bool:
    """Have the weights of ``module``'s :class:`Linear` layers packed at their first use.

    Only on a CPU where oneDNN computes them, and only up to ``PACK_LIMIT`` bytes, since the copies
    take as much memory again (so not while loading, whose peak is one copy). Call it once weights
    are final. Returns whether they will be.
    """
    weights = [layer.weight for layer in module.modules() if isinstance(layer, Linear)]
    useful = all(backend(w.device, w.dtype) == "onednn" for w in weights)
    if not useful or sum(w.nbytes for w in weights) > PACK_LIMIT:
        return False
    for weight in weights:
        weight.packed = None  # type: ignore[attr-defined]
    return True


def pack_like(weight: Tensor, other: Tensor) -> Tensor:
    """``weight``, to be packed at its first use if ``other`` is."""
    if hasattr(other, "packed"):
        weight.packed = None  # type: ignore[attr-defined]
    return weight


def pack_alone(weight: Tensor) -> Tensor:
    """``weight``, to be packed at its first use where that helps; for one product."""
    if backend(weight.device, weight.dtype) == "onednn":
        weight.packed = None  # type: ignore[attr-defined]
    return weight


def _packed(weight: Tensor) -> Tensor:
    """The packed copy of a weight that is to have one, or the weight itself."""
    if not hasattr(weight, "packed"):
        return weight
    if weight.packed is None:
        with torch.no_grad():
            weight.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return weight.packed


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`."""

    def forward(self, x: Tensor, narrow: StandIn | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, narrow=narrow)
