"""The kernels that eqsparse brings: in C++ for CPUs, compiled on first use; in Pallas for NVIDIA GPUs.

```python
eqsparse.kernels.build()  # now, say when an image is made; otherwise the first product does
eqsparse.kernels.available()  # whether products on the CPU run on them
with eqsparse.kernels.use_pallas():  # products of `BlockLayout` run on those in Pallas on any NVIDIA GPU
    ...
```
"""

from ._kernels import available as available, build as build, Built as Built, use_pallas as use_pallas
