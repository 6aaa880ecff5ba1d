// Matrices as they are stored, read as rows of CSR.
#pragma once

#include <atomic>
#include <type_traits>
#include <vector>

#include "rows.h"

namespace eqsparse {

// Memory that one worker decodes into.
template <class C>
struct Room {
  float* values;
  C* columns;
  int32_t *begins, *ends;
};

// A matrix stored in some way. Its entries that are no padding are decoded some rows at a time.
template <class C>
class Source {
 public:
  using Base = Source;

  const int64_t out_size, in_size, stored;

  Source(int64_t out_size, int64_t in_size, int64_t stored) : out_size(out_size), in_size(in_size), stored(stored) {}
  virtual ~Source() = default;

  // The most entries in `step` rows that begin at a multiple of it: what `rows` has room for.
  virtual int64_t most(int64_t step) const = 0;

  virtual Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const = 0;

  // Where the samples of these rows are written to; `put` then brings them to their places.
  virtual float* samples(const Rows<C>& rows, void* out, float* room) const = 0;
  virtual void put(int64_t first, const Rows<C>& rows, const float* samples, void* out) const = 0;

  // Whether a column was found that there is not, or rows that overlap. Nothing is read or written there.
  mutable std::atomic<bool> is_wrong{false};

  // Writes zeros where `put` will write nothing.
  virtual void clear(void* out) const = 0;
};

// What is the same for matrices whose values lie by rows, one after the other.
template <class T, class C>
class ByRows : public Source<C> {
 public:
  using Source<C>::Source;

  float* samples(const Rows<C>& rows, void* out, float* room) const final {
    if constexpr (kIsFloat) return static_cast<float*>(out) + rows.target;
    return room;
  }

  void put(int64_t, const Rows<C>& rows, const float* samples, void* out) const final {
    if constexpr (!kIsFloat)
      for (int64_t k = 0, end = rows.count ? rows.end(rows.count - 1) : 0; k < end; ++k)
        store(static_cast<T*>(out) + rows.target + k, samples[k]);
  }

  void clear(void* out) const final {
    T* samples = static_cast<T*>(out);
    const int64_t begin = this->out_size ? at(0) : this->stored, end = this->out_size ? at(this->out_size) : begin;
    std::fill(samples, samples + begin, T{});
    std::fill(samples + end, samples + this->stored, T{});
  }

 protected:
  static constexpr bool kIsFloat = std::is_same_v<T, float>;

  // Where the values of a row begin.
  virtual int64_t at(int64_t row) const = 0;

  int64_t most_between(int64_t step) const {
    int64_t most = 0;
    for (int64_t first = 0; first < this->out_size; first += step)
      most = std::max(most, at(std::min(first + step, this->out_size)) - at(first));
    return most;
  }

  // In float, as they are or decoded. There are none where only places are asked for.
  const float* values_of(const T* values, int64_t begin, int64_t end, float* room) const {
    if (!values) return nullptr;
    if constexpr (kIsFloat) return values + begin;
    for (int64_t k = begin; k < end; ++k) room[k - begin] = to_float(values[k]);
    return room;
  }
};

// Whether all columns are below a size: a few percent of the time of a product with a vector, less of others.
template <class C>
bool are_below(const C* columns, int64_t count, int64_t size) {
  std::make_unsigned_t<C> most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max<std::make_unsigned_t<C>>(most, columns[k]);
  return count <= 0 || int64_t(most) < size;
}

// Values, columns, and where each row begins.
template <class T, class C>
class Csr final : public ByRows<T, C> {
 public:
  Csr(const T* values, const C* columns, const int32_t* pointers, int64_t out_size, int64_t in_size, int64_t stored)
      : ByRows<T, C>(out_size, in_size, stored), values_(values), columns_(columns), pointers_(pointers) {}

  int64_t most(int64_t step) const override { return this->kIsFloat ? 0 : this->most_between(step); }

  Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const override {
    const int64_t begin = at(first);
    const float* values = this->values_of(values_, begin, at(first + count), room.values);
    int64_t stored = this->stored;
    if (!std::is_sorted(pointers_ + first, pointers_ + first + count + 1) ||
        !are_below(columns_ + begin, at(first + count) - begin, this->in_size)) {
      this->is_wrong = true;
      stored = begin;  // as if the rows were empty
    }
    return {values, columns_ + begin, pointers_ + first, pointers_ + first + 1, count, stored, begin, begin};
  }

 private:
  int64_t at(int64_t row) const override { return std::clamp<int64_t>(pointers_[row], 0, this->stored); }

  const T* values_;
  const C* columns_;
  const int32_t* pointers_;
};

// Values by rows, and one bit for each position of a row, the highest of a byte first.
template <class T, class C>
class Bitmask final : public ByRows<T, C> {
 public:
  Bitmask(const T* values, const uint8_t* bits, int64_t bytes, int64_t out_size, int64_t in_size, int64_t stored)
      : ByRows<T, C>(out_size, in_size, stored), values_(values), bits_(bits), bytes_(bytes), pointers_(out_size + 1) {
    for (int64_t row = 0, total = 0; row < out_size; ++row) {
      for_words(row, [&](int64_t, uint64_t word) { total += __builtin_popcountll(word); });
      pointers_[row + 1] = int32_t(std::min(total, stored));
    }
  }

  int64_t most(int64_t step) const override { return this->most_between(step); }

  Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const override {
    const int64_t begin = at(first), end = at(first + count);
    C* next = room.columns;
    for (int64_t row = first; row < first + count; ++row)
      for_words(row, [&](int64_t column, uint64_t word) {
        for (; word && next - room.columns < end - begin; word &= ~(uint64_t(1) << 63 >> __builtin_clzll(word)))
          *next++ = C(column + __builtin_clzll(word));
      });
    const int32_t* pointers = pointers_.data() + first;
    const float* values = this->values_of(values_, begin, end, room.values);
    return {values, room.columns, pointers, pointers + 1, count, this->stored, begin, begin};
  }

 private:
  int64_t at(int64_t row) const override { return pointers_[row]; }

  // Visits the bits of a row, 64 at a time: the column of the first, and a word that begins with it.
  template <class Visit>
  void for_words(int64_t row, Visit visit) const {
    const uint8_t* bits = bits_ + row * bytes_;
    for (int64_t byte = 0; byte < bytes_; byte += 8) {
      uint64_t word = 0;
      if (byte + 8 <= bytes_) {
        std::memcpy(&word, bits + byte, 8);
        word = __builtin_bswap64(word);
      } else {
        for (int64_t i = byte; i < bytes_; ++i) word |= uint64_t(bits[i]) << (56 - 8 * (i - byte));
      }
      const int64_t left = this->in_size - 8 * byte;
      if (left < 64) word &= left > 0 ? ~uint64_t(0) << (64 - left) : 0;
      visit(8 * byte, word);
    }
  }

  const T* values_;
  const uint8_t* bits_;
  int64_t bytes_;
  std::vector<int32_t> pointers_;
};

// n values of each run of m, and their places in it, in a fixed number of bits, the lowest first.
template <class T, class C>
class Nm final : public ByRows<T, C> {
 public:
  Nm(const T* values, const uint8_t* places, int64_t bytes, int64_t n, int64_t m, int64_t out_size, int64_t in_size)
      : ByRows<T, C>(out_size, in_size, out_size * (in_size / m * n)), values_(values), places_(places), bytes_(bytes),
        n_(n), m_(m), kept_(in_size / m * n) {
    while ((int64_t(1) << width_) < m) ++width_;
  }

  int64_t most(int64_t step) const override { return step * kept_; }

  Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const override {
    const uint64_t mask = (uint64_t(1) << width_) - 1;
    C* next = room.columns;
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* places = places_ + (first + row) * bytes_;
      uint64_t bits = 0;
      int64_t held = 0, run = 0, in_run = 0;
      for (int64_t k = 0; k < kept_; ++k) {
        if (held < width_) {
          bits |= uint64_t(*places++) << held;
          held += 8;
        }
        *next++ = C(std::min<int64_t>(run + int64_t(bits & mask), this->in_size - 1));
        bits >>= width_;
        held -= width_;
        if (++in_run == n_) in_run = 0, run += m_;
      }
      room.begins[row] = int32_t(row * kept_);
      room.ends[row] = int32_t((row + 1) * kept_);
    }
    const float* values = this->values_of(values_, at(first), at(first + count), room.values);
    return {values, room.columns, room.begins, room.ends, count, count * kept_, 0, at(first)};
  }

 private:
  int64_t at(int64_t row) const override { return row * kept_; }

  const T* values_;
  const uint8_t* places_;
  int64_t bytes_, n_, m_, kept_, width_ = 1;
};

// As many entries in each row; entries first, rows last. Column `in_size` is padding.
template <class T, class I, class C>
class FanIn final : public Source<C> {
 public:
  FanIn(const T* values, const I* columns, int64_t fan_in, int64_t out_size, int64_t in_size)
      : Source<C>(out_size, in_size, fan_in * out_size), values_(values), columns_(columns), fan_in_(fan_in) {}

  int64_t most(int64_t step) const override { return step * fan_in_; }

  Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const override {
    for (int64_t row = 0; row < count; ++row) room.begins[row] = room.ends[row] = int32_t(row * fan_in_);
    for (int64_t entry = 0; entry < fan_in_; ++entry) {
      const int64_t from = entry * this->out_size + first;
      for (int64_t row = 0; row < count; ++row) {
        const int32_t to = room.ends[row];
        if (values_) room.values[to] = to_float(values_[from + row]);
        room.columns[to] = C(columns_[from + row]);
        room.ends[row] = to + (int64_t(columns_[from + row]) < this->in_size && columns_[from + row] >= 0);
      }
    }
    return {room.values, room.columns, room.begins, room.ends, count, count * fan_in_};
  }

  float* samples(const Rows<C>&, void*, float* room) const override { return room; }

  void put(int64_t first, const Rows<C>& rows, const float* samples, void* out) const override {
    for (int64_t row = 0; row < rows.count; ++row) {
      int64_t next = rows.begin(row);
      for (int64_t entry = 0; entry < fan_in_; ++entry) {
        const int64_t to = entry * this->out_size + first + row;
        const bool is_entry = int64_t(columns_[to]) < this->in_size && columns_[to] >= 0;
        store(static_cast<T*>(out) + to, is_entry ? samples[next++] : 0);
      }
    }
  }

  void clear(void*) const override {}

 private:
  const T* values_;
  const I* columns_;
  int64_t fan_in_;
};

// Indices of some whole type.
struct Indices {
  const void* data;
  int64_t itemsize;

  int64_t operator[](int64_t i) const {
    if (itemsize == 1) return static_cast<const uint8_t*>(data)[i];
    if (itemsize == 2) return static_cast<const uint16_t*>(data)[i];
    return static_cast<const int32_t*>(data)[i];
  }
};

// Dense blocks by rows of blocks. Those at the far edges may stick out; those below the last row are padding.
template <class T, class C>
class Blocks final : public Source<C> {
 public:
  Blocks(const T* values, Indices rows, Indices columns, int64_t blocks, int64_t height, int64_t width,
         int64_t out_size, int64_t in_size)
      : Source<C>(out_size, in_size, blocks * height * width), values_(values), columns_(columns), height_(height),
        width_(width), starts_((out_size + height - 1) / height + 1) {
    const int64_t down = int64_t(starts_.size()) - 1;
    for (int64_t block = 0; block < blocks; ++block)
      if (rows[block] < down && rows[block] >= 0) ++starts_[rows[block] + 1];
    for (int64_t row = 0; row < down; ++row) starts_[row + 1] += starts_[row];
  }

  int64_t most(int64_t step) const override {
    int64_t most = 0;
    for (size_t row = 0; row + 1 < starts_.size(); ++row) most = std::max(most, starts_[row + 1] - starts_[row]);
    return step * most * width_;
  }

  Rows<C> rows(int64_t first, int64_t count, const Room<C>& room) const override {
    int32_t next = 0;
    for (int64_t row = 0; row < count; ++row) {
      room.begins[row] = next;
      for_blocks(first + row, [&](const T* values, int64_t column, int64_t width, int64_t) {
        for (int64_t i = 0; i < width; ++i) {
          room.values[next + i] = values ? to_float(values[i]) : 0;
          room.columns[next + i] = C(column + i);
        }
        next += int32_t(width);
      });
      room.ends[row] = next;
    }
    return {room.values, room.columns, room.begins, room.ends, count, next};
  }

  float* samples(const Rows<C>&, void*, float* room) const override { return room; }

  void put(int64_t first, const Rows<C>& rows, const float* samples, void* out) const override {
    for (int64_t row = 0; row < rows.count; ++row) {
      const float* next = samples + rows.begin(row);
      for_blocks(first + row, [&](const T*, int64_t, int64_t width, int64_t at) {
        for (int64_t i = 0; i < width; ++i) store(static_cast<T*>(out) + at + i, *next++);
      });
    }
  }

  void clear(void* out) const override {
    std::fill(static_cast<T*>(out), static_cast<T*>(out) + this->stored, T{});
  }

 private:
  // Visits the parts of a row: values, first column, how many, and where they are stored.
  template <class Visit>
  void for_blocks(int64_t row, Visit visit) const {
    for (int64_t block = starts_[row / height_]; block < starts_[row / height_ + 1]; ++block) {
      const int64_t column = columns_[block] * width_, at = (block * height_ + row % height_) * width_;
      const int64_t width = std::min(width_, this->in_size - column);
      if (column >= 0 && width > 0) visit(values_ ? values_ + at : nullptr, column, width, at);
    }
  }

  const T* values_;
  Indices columns_;
  int64_t height_, width_;
  std::vector<int64_t> starts_;  // of rows of blocks
};

}  // namespace eqsparse
