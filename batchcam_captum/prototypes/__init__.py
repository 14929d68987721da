"""What cams are compared with: a map, or several, of each class."""

from .base import Prototypes, References
from .class_prototypes import ClassPrototypes

__all__ = ["ClassPrototypes", "Prototypes", "References"]
