"""Where a model looks, class by class: mean maps, the classes that maps resemble, and the mistakes side by side."""

from .diagnose import diagnose
from .result import ClassDiagnosis, Diagnosis, Mistakes

__all__ = ["ClassDiagnosis", "Diagnosis", "Mistakes", "diagnose"]
