"""The kernels that eqsparse brings for CPUs: C++, compiled on first use.

```python
eqsparse.kernels.build()  # now, say when an image is made; otherwise the first product does
eqsparse.kernels.available()  # whether products run on them
```
"""

from ._kernels import available as available, build as build, Built as Built
