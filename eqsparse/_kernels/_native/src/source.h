// Matrices as they are stored, read as rows of CSR.
#pragma once

#include "rows.h"

namespace eqsparse {

// Memory that one worker decodes into.
template <class C>
struct Decoded {
  float* values;
  C* columns;
  int32_t* pointers;
};

// A matrix stored in some way. Its entries that are no padding are decoded some rows at a time.
template <class C>
class Source {
 public:
  const int64_t out_size, in_size, stored;

  Source(int64_t out_size, int64_t in_size, int64_t stored) : out_size(out_size), in_size(in_size), stored(stored) {}
  virtual ~Source() = default;

  // The most entries in `step` rows that begin at a multiple of it: what `rows` has room for.
  virtual int64_t most(int64_t step) const = 0;

  virtual Rows<C> rows(int64_t first, int64_t count, const Decoded<C>& room) const = 0;

  // Where the samples of these rows are written to; `put` then brings them to their places.
  virtual float* samples(const Rows<C>& rows, void* out, float* room) const = 0;
  virtual void put(int64_t first, const Rows<C>& rows, const float* samples, void* out) const = 0;

  // Writes zeros where `put` will write nothing.
  virtual void clear(void* out) const = 0;
};

// Values, columns, and where each row begins.
template <class T, class C>
class Csr final : public Source<C> {
 public:
  Csr(const T* values, const C* columns, const int32_t* pointers, int64_t out_size, int64_t in_size, int64_t stored)
      : Source<C>(out_size, in_size, stored), values_(values), columns_(columns), pointers_(pointers) {}

  int64_t most(int64_t step) const override {
    int64_t most = 0;
    if (!kIsFloat)
      for (int64_t first = 0; first < this->out_size; first += step)
        most = std::max(most, at(std::min(first + step, this->out_size)) - at(first));
    return most;
  }

  Rows<C> rows(int64_t first, int64_t count, const Decoded<C>& room) const override {
    const int64_t begin = at(first);
    const float* values = nullptr;
    if constexpr (kIsFloat) {
      values = values_ ? values_ + begin : nullptr;
    } else if (values_) {
      for (int64_t k = begin, end = at(first + count); k < end; ++k) room.values[k - begin] = to_float(values_[k]);
      values = room.values;
    }
    return {values, columns_ + begin, pointers_ + first, count, this->stored, begin};
  }

  float* samples(const Rows<C>& rows, void* out, float* room) const override {
    if constexpr (kIsFloat) return static_cast<float*>(out) + rows.offset;
    return room;
  }

  void put(int64_t, const Rows<C>& rows, const float* samples, void* out) const override {
    if constexpr (!kIsFloat)
      for (int64_t k = 0, end = rows.count ? rows.end(rows.count - 1) : 0; k < end; ++k)
        store(static_cast<T*>(out) + rows.offset + k, samples[k]);
  }

  void clear(void* out) const override {
    T* samples = static_cast<T*>(out);
    std::fill(samples, samples + (this->out_size ? at(0) : this->stored), T{});
    if (this->out_size) std::fill(samples + at(this->out_size), samples + this->stored, T{});
  }

 private:
  static constexpr bool kIsFloat = std::is_same_v<T, float>;

  int64_t at(int64_t row) const { return std::clamp<int64_t>(pointers_[row], 0, this->stored); }

  const T* values_;  // none where only places are asked for
  const C* columns_;
  const int32_t* pointers_;
};

}  // namespace eqsparse
