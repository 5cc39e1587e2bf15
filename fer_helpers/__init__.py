"""Facial emotion recognition: the parts that the notebook puts together."""

__version__ = "0.1.0"
