"""Pictures to train on: Fashion-MNIST, and captioned emoji in several drawing styles."""

from __future__ import annotations


class DataError(Exception):
    """The data set is missing or damaged, or something it needs is not installed."""
