"""What every room asks of the numbers that set a method up: one wording for one kind of mistake."""

from __future__ import annotations

import math

__all__ = ["check_fraction", "check_part", "check_positive", "check_whole"]


def check_whole(least: int = 1, **settings: int) -> None:
    """Raise ValueError for a setting that is no whole number, or below `least`."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, got {value}")


def check_positive(**settings: float) -> None:
    """Raise ValueError for a setting that is not positive and finite."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_part(**settings: float) -> None:
    """Raise ValueError for a part of the steps that is not between 0 and 1, both allowed."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a part of the steps, between 0 and 1, got {value}")


def check_fraction(**settings: float) -> None:
    """Raise ValueError for a setting that does not lie strictly between 0 and 1."""
    for name, value in settings.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
