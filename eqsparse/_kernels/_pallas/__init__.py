"""Products in Pallas for NVIDIA GPUs."""

from .block import calls as calls
from .switch import pallas_fingerprint as pallas_fingerprint, use_pallas as use_pallas
