// Vectors of floats of the machine's width, from one source: AVX-512, AVX, and 128 bits elsewhere.
#pragma once

#include <cstdint>
#include <cstring>

namespace eqsparse {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// `aligned(4)`: loads and stores make no demand on addresses, which XLA's scratch and users' arrays do not meet alike.
typedef float Vector __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Numbers as they are stored. Sums are taken in float.
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline void store(float* place, float value) { *place = value; }

inline void store(BFloat16* place, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  // To the nearest, ties to even; a nan stays one.
  bits = value == value ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
  place->bits = uint16_t(bits >> 16);
}

inline Four load_four(const float* from) { return *reinterpret_cast<const Four*>(from); }

inline void store_four(float* to, Four value) { *reinterpret_cast<Four*>(to) = value; }

typedef uint32_t FourBits __attribute__((vector_size(16)));
typedef uint16_t FourHalves __attribute__((vector_size(8), aligned(2), may_alias));

inline Four load_four(const BFloat16* from) {
  return (Four)(__builtin_convertvector(*reinterpret_cast<const FourHalves*>(from), FourBits) << 16);
}

inline void store_four(BFloat16* to, Four value) {  // as `store`
  const FourBits bits = (FourBits)value, is_number = (FourBits)(value == value);
  const FourBits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  *reinterpret_cast<FourHalves*>(to) =
      __builtin_convertvector(((rounded & is_number) | ((bits | 0x400000) & ~is_number)) >> 16, FourHalves);
}

#if defined(__clang__)
#define EQSPARSE_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define EQSPARSE_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (Index){i, j, k, l})
#endif

inline void transpose_four(Four rows[4]) {
  typedef int Index __attribute__((vector_size(16), unused));
  Four a = EQSPARSE_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5);
  Four b = EQSPARSE_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7);
  Four c = EQSPARSE_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5);
  Four d = EQSPARSE_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = EQSPARSE_SHUFFLE(a, c, 0, 1, 4, 5);
  rows[1] = EQSPARSE_SHUFFLE(a, c, 2, 3, 6, 7);
  rows[2] = EQSPARSE_SHUFFLE(b, d, 0, 1, 4, 5);
  rows[3] = EQSPARSE_SHUFFLE(b, d, 2, 3, 6, 7);
}

}  // namespace eqsparse
