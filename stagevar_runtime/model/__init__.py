"""What a next-scale model is: the door for authors of families.

One import gives what a family needs: the protocol with its state and specification
(``protocol.py``), keys and values (``kvcache.py``), drawing (``sampling.py``), attention and the
loading of weights.
"""

from ..checkpoint.weights import load_exactly
from ..kernels.attention import attend
from .kvcache import KVCache, empty_caches
from .protocol import (
    Branch,
    Conditioning,
    ModelInfo,
    ScaleModel,
    ScaleSpec,
    State,
    split_depth,
    tile_on,
)
from .sampling import Drawn, Noise, Sampling, ScaleSampling, draw

__all__ = [
    "Branch",
    "Conditioning",
    "Drawn",
    "KVCache",
    "ModelInfo",
    "Noise",
    "Sampling",
    "ScaleModel",
    "ScaleSampling",
    "ScaleSpec",
    "State",
    "attend",
    "draw",
    "empty_caches",
    "load_exactly",
    "split_depth",
    "tile_on",
]
