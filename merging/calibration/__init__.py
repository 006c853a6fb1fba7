"""Calibration: what a model's activations are on a set of texts."""

from merging.calibration.statistics import calibrate
from merging.calibration.texts import CalibrationSet, read_texts, read_token_blocks, token_blocks

__all__ = ["CalibrationSet", "calibrate", "read_texts", "read_token_blocks", "token_blocks"]
