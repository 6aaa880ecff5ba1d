"""Products in C++ for CPUs, compiled on first use."""

from .calls import calls as calls
from .library import available as available, build as build, fingerprint as fingerprint
from .provide import Built as Built
