"""Small whole numbers in a fixed number of bits, and places in a bit mask."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer, UInt8


def pack(codes: Integer[np.ndarray, "*rows count"], width: int) -> UInt8[np.ndarray, "*rows packed"]:
    """Numbers below `2**width`, eight of them to `width` bytes along the last axis, lowest bits first."""
    count = codes.shape[-1]
    padded = np.zeros((*codes.shape[:-1], count + -count % 8), np.uint8)
    padded[..., :count] = codes
    bits = np.unpackbits(padded[..., None], axis=-1, count=width, bitorder="little")
    return np.packbits(bits.reshape(*bits.shape[:-2], -1), axis=-1, bitorder="little")


def unpack_on_host(packed: UInt8[np.ndarray, "*rows packed"], width: int, count: int) -> np.ndarray:
    """`unpack`, in NumPy."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little").reshape(*packed.shape[:-1], -1, width)
    return np.packbits(bits, axis=-1, bitorder="little")[..., :count, 0].astype(np.int32)


def unpack(packed: UInt8[Array, "*rows packed"], width: int, count: int) -> Int32[Array, "*rows count"]:
    """The first `count` numbers that `pack` has packed."""
    groups = packed.reshape(*packed.shape[:-1], -1, width).astype(jnp.uint32)
    codes = []
    for place in range(8):
        byte, shift = divmod(place * width, 8)
        code = groups[..., byte] >> shift
        if shift + width > 8:
            code = code | (groups[..., byte + 1] << (8 - shift))
        codes.append(code & (2**width - 1))
    flat = jnp.stack(codes, axis=-1).reshape(*packed.shape[:-1], -1)
    return flat[..., :count].astype(jnp.int32)


def spread(bits: UInt8[Array, "rows packed"]) -> tuple[Int32[Array, "rows places"], Int32[Array, "rows places"]]:
    """For each place of a bit mask (highest bit first): its bit, and how many set bits its row has before it."""
    counts = jnp.bitwise_count(bits).astype(jnp.int32)
    # A running total as a product with ones above the diagonal, exact below 2**24: half the time of `cumsum` on CPU.
    above = jnp.triu(jnp.ones((counts.shape[1], counts.shape[1]), jnp.float32), 1)
    before_byte = (counts.astype(jnp.float32) @ above).astype(jnp.int32)
    # In 32-bit lanes, by shifts that are computed rather than read, as `Mask.dense` has them.
    lanes = jnp.broadcast_to(bits[..., None], (*bits.shape, 8)).astype(jnp.uint32)
    place = jax.lax.broadcasted_iota(jnp.uint32, lanes.shape, 2)
    bit = (lanes >> (7 - place)) & 1
    before = before_byte[..., None] + jnp.bitwise_count(lanes >> (8 - place)).astype(jnp.int32)
    flat = (bits.shape[0], 8 * bits.shape[1])
    return bit.astype(jnp.int32).reshape(flat), before.reshape(flat)
