"""The checks of settings let through what is right, name what is not, and say what was expected."""

import math

import pytest

from bnnlib._settings import check_fraction, check_part, check_positive, check_whole


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_whole, [1, 7], [0, -1, 2.0, True, "3", math.nan]),
        (check_positive, [1e-300, 3, 0.5], [0, -0.1, math.inf, math.nan]),
        (check_part, [0, 0.5, 1], [-0.01, 1.01, math.nan]),
        (check_fraction, [0.01, 0.99], [0, 1, -1, math.nan]),
    ],
)
def test_settings_are_held_to_their_range_by_name(check, good, bad):
    for value in good:
        check(first=value, second=value)
    for value in bad:
        with pytest.raises(ValueError, match=rf"^second .*got {value}$"):
            check(first=good[0], second=value)


def test_a_whole_number_has_a_least_value():
    check_whole(0, warmup=0)
    with pytest.raises(ValueError, match="rank must be a whole number, at least 2, got 1"):
        check_whole(2, rank=1)
