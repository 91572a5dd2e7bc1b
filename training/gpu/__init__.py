"""Trains the text-to-image reference that is worth looking at, in minutes of one GPU.

python -m training.gpu --minutes 8 --shard runs/pictures.zip --out runs/pictures

Needs Python, PyTorch, NumPy, SciPy and Pillow, nothing else and no network; see docs/training.md.
"""

import time

from ..bare import without_profiles

STARTED = time.monotonic()  # before PyTorch is imported, which takes its time
without_profiles()
