"""What cams are compared with: a map, or several, of each class."""

from .base import Prototypes, References
from .class_prototypes import ClassPrototypes
from .running import RunningPrototypes
from .stored import StoredPrototypes

__all__ = ["ClassPrototypes", "Prototypes", "References", "RunningPrototypes", "StoredPrototypes"]
