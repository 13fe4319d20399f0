"""hwnas: hardware-aware neural architecture search that measures the device, keeps the budget and proves it."""

__version__ = "0.1.0"
