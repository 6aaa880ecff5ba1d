"""Products in C++ for CPUs, compiled on first use."""

from .calls import calls as calls, calls_convolution as calls_convolution
from .library import available as available, build as build, fingerprint as fingerprint
from .provide import Built as Built
