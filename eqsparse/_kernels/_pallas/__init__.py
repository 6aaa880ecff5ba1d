"""Products in Pallas for NVIDIA GPUs, where they are asked for."""

from .block import calls as calls
from .switch import use_pallas as use_pallas
