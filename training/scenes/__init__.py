"""Trains the text-to-image reference checkpoint on rendered scenes of coloured shapes."""
