"""Products in C++ for CPUs, compiled on first use."""

from .calls import Calls as Calls, calls as calls, serves as serves
from .library import available as available, build as build, fingerprint as fingerprint
from .provide import Built as Built
