"""What cams are worth, as numbers: pure functions, one number a sample first. Metrics need no graph and take the signed cams."""

from .prototypes import prototype_cosine, prototype_distance

__all__ = ["prototype_cosine", "prototype_distance"]
