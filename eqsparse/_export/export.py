"""From a masked model to the smallest or the fastest one that predicts the same."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from jaxtyping import PyTree

from .._check import integer
from .._layers import AbstractMasked
from .._sites import check_by_pattern, join, Pattern, PatternMap, read
from ._layout import AbstractLayout, LAYOUTS
from .choose import Always, Exactly, Fastest, Smallest
from .exchange import checked, exchange_masked, exchangeable
from .sparse import slices_in, SparseLayer

LayoutLike: TypeAlias = str | type[AbstractLayout]


def export(
    model: PyTree,
    layout: LayoutLike | Mapping[Pattern, LayoutLike] = "auto",
    objective: str = "bytes",
    *,
    batch: int = 128,
) -> PyTree:
    """A masked model for inference, each weight in the layout that is the smallest or the fastest.

    ```python
    exported = eqsparse.export(model)
    print(eqsparse.report(exported))  # path, layout, kept, bytes before and after
    eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(exported, x)  # the model is an argument
    ```

    Each masked layer becomes an `eqsparse.SparseLayer`, called as before, with the same results but for rounding.
    Weights that the mask keeps are stored even if they are zero. No weight gets larger than it is dense: it stays
    dense then, and the report says so. Stacks of layers (leading axes) stay stacks, each slice as large as the
    fullest.

    Layers within `eqx.nn.Shared` become plain ones with zeros in their weights; those within `eqx.nn.WeightNorm` and
    `eqx.nn.SpectralNorm`, which compute the weight anew in each call, stay masked.

    **Arguments:**

    - `model`: A model with masked layers. Call this outside `jax.jit`: the masks say how large the arrays are.
    - `layout`: `"auto"`, or one layout for all weights that it makes smaller: `"bitmask"`, `"delta"`, `"nm"`,
        `"block"`, `"fixed_fanin"`, `"bcsr"`, `"bcoo"` or `"dense"`, or a class such as `eqsparse.BitmaskLayout`. Or
        a dict from path pattern to these, taken at its word; the weights it does not name are chosen automatically.
    - `objective`: `"bytes"` takes the smallest layout, by exact arithmetic. `"latency"` takes the fastest of the
        layouts smaller than dense, by timing their products and convolutions on this device, once for each shape and
        number of kept weights (to two digits; a second or two on an idle machine). The figures are kept in
        `$XDG_CACHE_HOME/eqsparse` or `~/.cache/eqsparse`. Embeddings, transposed and depthwise convolutions stay dense
        then, and all convolutions with larger kernels than 1 where eqsparse's own kernels (`eqsparse.kernels`) do not
        run.
    - `batch`: The number of vectors multiplied at a time to be fast for (of a transformer, examples times tokens), or
        of images for convolutions. These are timed with up to 16 images of 64 positions and 2 of 1,024: a layout must
        be faster at both. Only `"latency"` reads it.

    **Returns:** The model with `eqsparse.SparseLayer`s.

    **Raises:** `ValueError` if the model has no masked layer or is traced, a name is unknown, a pattern matches no
    masked weight, or a layout asked for by path cannot hold the mask there.
    """
    choices = _choices(exchangeable(checked(model, "export")), layout, _by_objective(objective, batch))

    def change(path: str, masked: AbstractMasked) -> Any:
        weights = {
            name: choices[join(path, name)](slices_in(masked, name), masked.layer) for name in sorted(masked.masks)
        }
        return SparseLayer(masked, weights) if weights else masked.layer

    return exchange_masked(model, change)


def _by_objective(objective: str, batch: int) -> Smallest | Fastest:
    if objective == "latency":
        return Fastest(integer(batch, "export(batch=...)", least=1))
    if objective != "bytes":
        raise ValueError(f'`export(objective=...)` must be "bytes" or "latency". Got {objective!r}.')
    return Smallest()


def _choices(model: PyTree, layout: Any, auto: Smallest | Fastest) -> dict[str, Any]:
    """Path → how to choose, for all masked weights."""
    weights = {path: site.weight for path, site in read(model).items() if site.mask is not None}
    if isinstance(layout, Mapping):
        check_by_pattern(layout, "export(layout=...)", "layout")
        asked = PatternMap({pattern: _one(value) for pattern, value in layout.items()})
        exactly = asked.lookup(weights, "export(layout=...)")
        return {path: auto if exactly.get(path) is None else Exactly(exactly[path], path) for path in weights}
    one = _one(layout)
    return dict.fromkeys(weights, auto if one is None else Always(one))


def _one(layout: Any) -> type[AbstractLayout] | None:
    """The class of a layout; `None` for `"auto"`."""
    if isinstance(layout, type) and issubclass(layout, AbstractLayout):
        return layout
    if isinstance(layout, str) and layout in LAYOUTS:
        return LAYOUTS[layout]
    if isinstance(layout, str) and layout == "auto":
        return None
    raise ValueError(
        f'`export(layout=...)` must be "auto", one of {list(LAYOUTS)}, a layout class, or a dict from path pattern to '
        f"these. Got {layout!r}."
    )
