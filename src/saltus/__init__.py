"""Saltus learns flow maps: networks that jump along the trajectories of a flow or diffusion model."""

__version__ = "0.1.0"
