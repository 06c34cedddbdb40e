"""Where samples come from: densities of the plane, arrays and pairs in memory, real digits, pictures on a
disk; or only noise."""

from saltus.data.arrays import ArrayData
from saltus.data.digits import digits
from saltus.data.images import Channels, Corrupt, Images, open_images
from saltus.data.loader import ImageData, Loading
from saltus.data.noise import Noise
from saltus.data.pairs import Pairs
from saltus.data.toy import (
    Checkerboard,
    Source,
    circles,
    eight_gaussians,
    from_density,
    from_mixture,
    pinwheel,
    swiss_roll,
    two_moons,
)

__all__ = [
    "ArrayData",
    "Channels",
    "Checkerboard",
    "Corrupt",
    "ImageData",
    "Images",
    "Loading",
    "Noise",
    "Pairs",
    "Source",
    "circles",
    "digits",
    "eight_gaussians",
    "from_density",
    "from_mixture",
    "open_images",
    "pinwheel",
    "swiss_roll",
    "two_moons",
]
