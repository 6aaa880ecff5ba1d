// A batch in strips: some examples side by side, so that a product reads the same column of all with one load.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace eqsparse {

constexpr int64_t kLanes = 64;  // the most examples in a strip
constexpr int64_t kFewest = kWidth > 8 ? kWidth : 8;

// Lanes of a strip of `examples`: those that are over are computed with zeros and thrown away. One example is a vector.
inline int64_t lanes_of(int64_t examples) {
  if (examples == 1) return 1;
  int64_t lanes = kFewest;
  while (lanes < examples) lanes *= 2;
  return lanes;
}

// A batch as strips of all its columns, one after the other; the last one may have fewer examples. Of 32 examples where
// a core's cache holds all their columns; of 64 where the columns come by tiles, and few entries meet a tile.
struct Batch {
  int64_t examples, wide, strips;

  Batch(int64_t examples, int64_t in_size)
      : examples(examples), wide(in_size > 2048 ? kLanes : kLanes / 2), strips((examples + wide - 1) / wide) {}

  int64_t first(int64_t strip) const { return strip * wide; }
  int64_t size(int64_t strip) const { return std::min(wide, examples - first(strip)); }
  int64_t lanes(int64_t strip) const { return lanes_of(size(strip)); }
  int64_t all_lanes() const { return strips ? first(strips - 1) + lanes(strips - 1) : 0; }
};

// Examples first to columns first: `strip[c][lane]` from `rows[lane][c]`, for `columns` columns of rows `stride` apart.
template <class T>
void to_strip(const T* rows, int64_t stride, int64_t columns, int64_t examples, int64_t lanes, float* strip) {
  int64_t lane = 0;
  for (; lane + 4 <= examples; lane += 4) {
    const T* from = rows + lane * stride;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Four part[4];
      for (int i = 0; i < 4; ++i) part[i] = load_four(from + i * stride + c);
      transpose_four(part);
      for (int i = 0; i < 4; ++i) store_four(strip + (c + i) * lanes + lane, part[i]);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < 4; ++i) strip[c * lanes + lane + i] = to_float(from[i * stride + c]);
  }
  for (; lane < examples; ++lane)
    for (int64_t c = 0; c < columns; ++c) strip[c * lanes + lane] = to_float(rows[lane * stride + c]);
  for (; lane < lanes; ++lane)
    for (int64_t c = 0; c < columns; ++c) strip[c * lanes + lane] = 0;
}

// Back: `rows[lane][c]` from `strip[c][lane]`.
template <class T>
void from_strip(const float* strip, int64_t stride, int64_t columns, int64_t examples, int64_t lanes, T* rows) {
  int64_t lane = 0;
  for (; lane + 4 <= examples; lane += 4) {
    T* to = rows + lane * stride;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Four part[4];
      for (int i = 0; i < 4; ++i) part[i] = load_four(strip + (c + i) * lanes + lane);
      transpose_four(part);
      for (int i = 0; i < 4; ++i) store_four(to + i * stride + c, part[i]);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < 4; ++i) store(to + i * stride + c, strip[c * lanes + lane + i]);
  }
  for (; lane < examples; ++lane)
    for (int64_t c = 0; c < columns; ++c) store(rows + lane * stride + c, strip[c * lanes + lane]);
}

// What a product takes or gives: some examples, read and written as strips of some of their columns.
class Examples {
 public:
  virtual ~Examples() = default;

  // `strip[c][lane]`, zeros in lanes that are over.
  virtual void read(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
                    float* strip) const = 0;
  virtual void write(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
                     const float* strip) const = 0;

  void read(const Batch& batch, int64_t strip, int64_t first, int64_t count, float* to) const {
    read(batch.first(strip), batch.size(strip), first, count, batch.lanes(strip), to);
  }

  void write(const Batch& batch, int64_t strip, int64_t first, int64_t count, const float* from) const {
    write(batch.first(strip), batch.size(strip), first, count, batch.lanes(strip), from);
  }
};

// A dense array of float or bfloat16, examples first.
class Dense final : public Examples {
 public:
  void* data;
  int64_t size;  // of an example
  bool is_half;

  Dense(void* data, int64_t size, bool is_half) : data(data), size(size), is_half(is_half) {}

  using Examples::read;
  using Examples::write;

  void read(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
            float* to) const override {
    const int64_t at = example * size + first;
    if (is_half) return to_strip(static_cast<const BFloat16*>(data) + at, size, count, examples, lanes, to);
    to_strip(static_cast<const float*>(data) + at, size, count, examples, lanes, to);
  }

  void write(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
             const float* from) const override {
    const int64_t at = example * size + first;
    if (is_half) return from_strip(from, size, count, examples, lanes, static_cast<BFloat16*>(data) + at);
    from_strip(from, size, count, examples, lanes, static_cast<float*>(data) + at);
  }
};

}  // namespace eqsparse
