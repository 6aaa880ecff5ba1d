// The layouts. Types of values and indices are looked at in each call: a class for each would take long to compile.
#pragma once

#include <vector>

#include "source.h"

namespace eqsparse {

// What is the same for matrices whose values lie by rows, one after the other.
class ByRows : public Source {
 public:
  ByRows(Numbers values, int64_t out_size, int64_t in_size, int64_t stored)
      : Source(out_size, in_size, stored), values_(values) {}

  float* samples(const Rows& rows, void* out, float* room) const final {
    return values_.is_half ? room : static_cast<float*>(out) + rows.target;
  }

  void put(int64_t, const Rows& rows, const float* samples, void* out) const final {
    const int64_t count = rows.count ? rows.end(rows.count - 1) : 0;
    if (values_.is_half) Numbers{out, true}.write(rows.target, count, samples);
  }

  void clear(void* out) const final {
    const int64_t begin = out_size ? at(0) : stored, end = out_size ? at(out_size) : begin;
    Numbers{out, values_.is_half}.clear(0, begin);
    Numbers{out, values_.is_half}.clear(end, stored);
  }

 protected:
  const Numbers values_;

  // Where the values of a row begin.
  virtual int64_t at(int64_t row) const = 0;

  int64_t most_between(int64_t step) const {
    int64_t most = 0;
    for (int64_t first = 0; first < out_size; first += step)
      most = std::max(most, at(std::min(first + step, out_size)) - at(first));
    return most;
  }

  // In float, as they are or decoded.
  const float* values_of(int64_t begin, int64_t end, float* room) const {
    if (!values_.data) return nullptr;
    if (!values_.is_half) return values_.floats() + begin;
    values_.read(begin, end - begin, room);
    return room;
  }
};

// Whether all columns are below a size: a few percent of the time of a product with a vector, less of others.
template <class C>
bool are_below(const C* columns, int64_t count, int64_t size) {
  C most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max(most, columns[k]);
  return count <= 0 || int64_t(most) < size;
}

// Values, columns, and where each row begins.
class Csr final : public ByRows {
 public:
  Csr(Numbers values, Columns columns, const int32_t* pointers, int64_t out_size, int64_t in_size, int64_t stored)
      : ByRows(values, out_size, in_size, stored), columns_(columns), pointers_(pointers) {}

  int64_t most(int64_t step) const override { return values_.is_half ? most_between(step) : 0; }

  Rows rows(int64_t first, int64_t count, const Room& room) const override {
    const int64_t begin = at(first), end = at(first + count);
    const float* values = values_of(begin, end, room.values);
    const Columns columns = columns_.from(begin);
    const bool are_columns = columns.is_wide ? are_below(columns.as<uint32_t>(), end - begin, in_size)
                                             : are_below(columns.as<uint16_t>(), end - begin, in_size);
    const bool is_right = are_columns && std::is_sorted(pointers_ + first, pointers_ + first + count + 1);
    if (!is_right) is_wrong = true;
    // If it is not, as if the rows were empty.
    return {values, columns, pointers_ + first, pointers_ + first + 1, count, is_right ? stored : begin, begin, begin};
  }

 private:
  int64_t at(int64_t row) const override { return std::clamp<int64_t>(pointers_[row], 0, stored); }

  const Columns columns_;
  const int32_t* pointers_;
};

// Values by rows, and one bit for each position of a row, the highest of a byte first.
class Bitmask final : public ByRows {
 public:
  Bitmask(Numbers values, const uint8_t* bits, int64_t bytes, int64_t out_size, int64_t in_size, int64_t stored)
      : ByRows(values, out_size, in_size, stored), bits_(bits), bytes_(bytes), pointers_(out_size + 1) {
    for (int64_t row = 0, total = 0; row < out_size; ++row) {
      for_words(row, [&](int64_t, uint64_t word) { total += __builtin_popcountll(word); });
      pointers_[row + 1] = int32_t(std::min(total, stored));
      if (total > stored) is_wrong = true;
    }
  }

  int64_t most(int64_t step) const override { return most_between(step); }

  Rows rows(int64_t first, int64_t count, const Room& room) const override {
    const int64_t begin = at(first), end = at(first + count);
    const Columns columns = decoded(room, [&](auto* next) {
      const auto* last = next + (end - begin);
      for (int64_t row = first; row < first + count; ++row)
        for_words(row, [&](int64_t column, uint64_t word) {
          for (; word && next < last; word &= ~(uint64_t(1) << 63 >> __builtin_clzll(word)))
            *next++ = column + __builtin_clzll(word);
        });
    });
    const int32_t* pointers = pointers_.data() + first;
    return {values_of(begin, end, room.values), columns, pointers, pointers + 1, count, stored, begin, begin};
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
      const int64_t left = in_size - 8 * byte;
      if (left < 64) word &= left > 0 ? ~uint64_t(0) << (64 - left) : 0;
      visit(8 * byte, word);
    }
  }

  const uint8_t* bits_;
  const int64_t bytes_;
  std::vector<int32_t> pointers_;
};

// n values of each run of m, and their places in it, in a fixed number of bits, the lowest first.
class Nm final : public ByRows {
 public:
  Nm(Numbers values, const uint8_t* places, int64_t bytes, int64_t n, int64_t m, int64_t out_size, int64_t in_size)
      : ByRows(values, out_size, in_size, out_size * (in_size / m * n)), places_(places), bytes_(bytes), n_(n), m_(m),
        kept_(in_size / m * n) {
    while ((int64_t(1) << width_) < m) ++width_;
  }

  int64_t most(int64_t step) const override { return step * kept_; }

  Rows rows(int64_t first, int64_t count, const Room& room) const override {
    const uint64_t mask = (uint64_t(1) << width_) - 1;
    uint64_t most = 0;
    const Columns columns = decoded(room, [&](auto* next) {
      for (int64_t row = 0; row < count; ++row) {
        const uint8_t* places = places_ + (first + row) * bytes_;
        uint64_t bits = 0;
        int64_t held = 0, run = 0, in_run = 0;
        for (int64_t k = 0; k < kept_; ++k) {
          if (held < width_) {
            bits |= uint64_t(*places++) << held;
            held += 8;
          }
          most = std::max(most, bits & mask);
          *next++ = std::min<int64_t>(run + int64_t(bits & mask), in_size - 1);
          bits >>= width_;
          held -= width_;
          if (++in_run == n_) in_run = 0, run += m_;
        }
        room.begins[row] = int32_t(row * kept_);
        room.ends[row] = int32_t((row + 1) * kept_);
      }
    });
    if (int64_t(most) >= m_) is_wrong = true;
    const float* values = values_of(at(first), at(first + count), room.values);
    return {values, columns, room.begins, room.ends, count, count * kept_, 0, at(first)};
  }

 private:
  int64_t at(int64_t row) const override { return row * kept_; }

  const uint8_t* places_;
  const int64_t bytes_, n_, m_, kept_;
  int64_t width_ = 1;
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

// As many entries in each row; entries first, rows last. Column `in_size` is padding.
class FanIn final : public Source {
 public:
  FanIn(Numbers values, Indices columns, int64_t fan_in, int64_t out_size, int64_t in_size)
      : Source(out_size, in_size, fan_in * out_size), values_(values), columns_(columns), fan_in_(fan_in) {}

  int64_t most(int64_t step) const override { return step * fan_in_; }

  Rows rows(int64_t first, int64_t count, const Room& room) const override {
    for (int64_t row = 0; row < count; ++row) room.begins[row] = room.ends[row] = int32_t(row * fan_in_);
    bool are_right = true;
    const Columns columns = decoded(room, [&](auto* columns) {
      float values[kRows] = {};
      for (int64_t entry = 0; entry < fan_in_; ++entry) {
        const int64_t from = entry * out_size + first;
        if (values_.data) values_.read(from, count, values);
        for (int64_t row = 0; row < count; ++row) {
          const int32_t to = room.ends[row];
          const int64_t column = columns_[from + row];
          are_right &= is_column(column) || column == in_size;
          room.values[to] = values[row];
          columns[to] = column;
          room.ends[row] = to + is_column(column);
        }
      }
    });
    if (!are_right) is_wrong = true;
    return {room.values, columns, room.begins, room.ends, count, count * fan_in_};
  }

  float* samples(const Rows&, void*, float* room) const override { return room; }

  void put(int64_t first, const Rows& rows, const float* samples, void* out) const override {
    for (int64_t row = 0; row < rows.count; ++row) {
      int64_t next = rows.begin(row);
      for (int64_t entry = 0; entry < fan_in_; ++entry) {
        const int64_t to = entry * out_size + first + row;
        const float sample = is_column(columns_[to]) ? samples[next++] : 0;
        Numbers{out, values_.is_half}.write(to, 1, &sample);
      }
    }
  }

  void clear(void*) const override {}

 private:
  bool is_column(int64_t column) const { return column >= 0 && column < in_size; }

  const Numbers values_;
  const Indices columns_;
  const int64_t fan_in_;
};

// Dense blocks by rows of blocks. Those at the far edges may stick out; those below the last row are padding.
class Blocks final : public Source {
 public:
  Blocks(Numbers values, Indices rows, Indices columns, int64_t blocks, int64_t height, int64_t width,
         int64_t out_size, int64_t in_size)
      : Source(out_size, in_size, blocks * height * width), values_(values), columns_(columns), height_(height),
        width_(width), starts_((out_size + height - 1) / height + 1) {
    const int64_t down = int64_t(starts_.size()) - 1, across = (in_size + width - 1) / width;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = rows[block], column = columns[block];
      const bool is_right = row >= (block ? rows[block - 1] : 0) && (row >= down || (column >= 0 && column < across));
      if (!is_right) is_wrong = true;
      if (row < down && row >= 0) ++starts_[row + 1];
    }
    for (int64_t row = 0; row < down; ++row) starts_[row + 1] += starts_[row];
  }

  int64_t most(int64_t step) const override {
    int64_t most = 0;
    for (size_t row = 0; row + 1 < starts_.size(); ++row) most = std::max(most, starts_[row + 1] - starts_[row]);
    return step * most * width_;
  }

  Rows rows(int64_t first, int64_t count, const Room& room) const override {
    int32_t next = 0;
    const Columns columns = decoded(room, [&](auto* columns) {
      for (int64_t row = 0; row < count; ++row) {
        room.begins[row] = next;
        for_parts(first + row, [&](int64_t at, int64_t column, int64_t width) {
          if (values_.data) values_.read(at, width, room.values + next);
          for (int64_t i = 0; i < width; ++i) columns[next + i] = column + i;
          next += int32_t(width);
        });
        room.ends[row] = next;
      }
    });
    return {room.values, columns, room.begins, room.ends, count, next, 0, 0, height_, first % height_};
  }

  float* samples(const Rows&, void*, float* room) const override { return room; }

  void put(int64_t first, const Rows& rows, const float* samples, void* out) const override {
    for (int64_t row = 0; row < rows.count; ++row) {
      const float* next = samples + rows.begin(row);
      for_parts(first + row, [&](int64_t at, int64_t, int64_t width) {
        Numbers{out, values_.is_half}.write(at, width, next);
        next += width;
      });
    }
  }

  void clear(void* out) const override { Numbers{out, values_.is_half}.clear(0, stored); }

 private:
  // Visits the parts of a row: where they are stored, first column, how many.
  template <class Visit>
  void for_parts(int64_t row, Visit visit) const {
    for (int64_t block = starts_[row / height_]; block < starts_[row / height_ + 1]; ++block) {
      const int64_t column = columns_[block] * width_, at = (block * height_ + row % height_) * width_;
      const int64_t width = std::min(width_, in_size - column);
      if (column >= 0 && width > 0) visit(at, column, width);
    }
  }

  const Numbers values_;
  const Indices columns_;
  const int64_t height_, width_;
  std::vector<int64_t> starts_;  // of rows of blocks
};

}  // namespace eqsparse
