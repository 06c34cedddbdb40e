"""Trained maps for programs without saltus: a folder that diffusers loads, a PyTorch program, ONNX.

Here alone, and in :mod:`saltus.teachers`, times are converted: a folder for diffusers speaks of timesteps
from 1000 (noise) to 0 (data) and of velocities towards noise.
"""

from saltus.export.card import Story
from saltus.export.folder import check_folder, write_folder
from saltus.export.lora import write_lora

__all__ = ["Story", "check_folder", "write_folder", "write_lora"]
