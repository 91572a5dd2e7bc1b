"""Trains the reference checkpoints that ship with the project."""
