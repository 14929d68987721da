"""The main use on real images: train with and without a Batch-CAM loss, and show the difference."""

from .run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
