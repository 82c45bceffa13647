"""Interactive figures: a page of HTML with its own SVG and JavaScript, which needs no server and no other library.

A widget as the last line of a notebook's cell shows itself. Every handle is dragged with mouse or finger, or moved with
the arrow keys; page up and page down make large steps, home and end go to the ends.
"""

from bnnlib.widgets.batchnorm import batchnorm
from bnnlib.widgets.normal_density import normal_density
from bnnlib.widgets.posterior_update import posterior_update
from bnnlib.widgets.two_directions import two_directions

__all__ = ["batchnorm", "normal_density", "posterior_update", "two_directions"]
