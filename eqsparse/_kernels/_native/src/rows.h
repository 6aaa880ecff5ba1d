// Products of some rows of a CSR matrix with a strip. All that is fast happens here.
#pragma once

#include "strips.h"

namespace eqsparse {

constexpr int64_t kRows = 256;              // the most rows that are worked on together
// Bytes of a strip that stay in a core's cache while some rows pass by.
constexpr int64_t kLeast = 96 * 1024, kMost = 256 * 1024;

// Columns in 16 bits, or in 32 where those are too few.
struct Columns {
  const void* data;
  bool is_wide;

  template <class C>
  const C* as() const {
    return static_cast<const C*>(data);
  }

  Columns from(int64_t k) const { return {static_cast<const char*>(data) + k * (is_wide ? 4 : 2), is_wide}; }
};

// Rows of a CSR matrix in float. Pointers are held to what is stored, so a wrong one reads nothing foreign.
struct Rows {
  const float* values;
  Columns columns;
  const int32_t *begins, *ends;  // of each row
  int64_t count, stored;
  int64_t offset = 0;  // what the pointer to the first value and column is
  int64_t target = 0;  // where the first of them is stored
  int64_t height = 1;  // so many rows have the same columns
  int64_t phase = 0;   // how many of those that the first has them with lie before it

  int64_t begin(int64_t row) const { return std::clamp<int64_t>(begins[row], offset, stored) - offset; }
  int64_t end(int64_t row) const { return std::clamp<int64_t>(ends[row], offset, stored) - offset; }
};

// The first place from `begin` to `end` whose column is at least `limit`; begins to look at `guess`.
template <class C>
int64_t find(const C* columns, int64_t begin, int64_t end, int64_t limit, int64_t guess) {
  int64_t low = begin, high = end;  // all before `low` are smaller, none from `high` on is
  if (low == high) return low;
  guess = std::clamp(guess, begin, end - 1);
  for (int64_t step = 1; low < high; step *= 4) {
    if (int64_t(columns[guess]) < limit) {
      low = guess + 1;
      if (low + step >= high) break;
      guess = low + step;
    } else {
      high = guess;
      if (high - step <= low) break;
      guess = high - step;
    }
  }
  while (low < high) {
    int64_t middle = (low + high) / 2;
    (int64_t(columns[middle]) < limit ? low : high) = int64_t(columns[middle]) < limit ? middle + 1 : middle;
  }
  return low;
}

// Calls `visit(row, begin, end, is_first)` for the entries of each row, tile of columns by tile.
template <class C, class Visit>
void by_tiles(const Rows& rows, int64_t in_size, int64_t lanes, Visit visit) {
  const C* columns = rows.columns.as<C>();
  // As narrow as leaves a hundred entries to a row's part: each part costs a search, and a guess that fails.
  const int64_t entries = rows.count ? std::max<int64_t>(rows.end(rows.count - 1) - rows.begin(0), 1) : 1;
  const int64_t column = std::max<int64_t>(4 * lanes, 4);  // bytes
  const int64_t width = std::clamp(96 * rows.count * in_size / entries, kLeast / column + 1, kMost / column + 1);
  const bool is_whole = in_size <= width;
  int64_t reached[kRows];
  for (int64_t row = 0; row < rows.count; ++row) reached[row] = rows.begin(row);
  int64_t start = 0;
  do {
    const bool is_last = start + width >= in_size;
    for (int64_t row = 0; row < rows.count; ++row) {
      const int64_t begin = reached[row], end = rows.end(row);
      const int64_t guess = begin + (end - begin) * width / std::max<int64_t>(in_size - start, 1);
      const int64_t stop = is_last ? end : find(columns, begin, end, start + width, guess);
      if (row + 1 < rows.count && !is_whole) {  // the next row's part lies apart: the cache cannot know
        const int64_t next = reached[row + 1], ahead = std::min(rows.end(row + 1), next + (stop - begin));
        if (rows.values)  // a sampled product makes them
          for (int64_t k = next; k < ahead; k += 64 / sizeof(float)) __builtin_prefetch(rows.values + k);
        for (int64_t k = next; k < ahead; k += 64 / sizeof(C)) __builtin_prefetch(columns + k);
      }
      visit(row, begin, stop, start == 0);
      reached[row] = stop;
    }
    start += width;
  } while (start < in_size);
}

// Some rows from `row` on, which have the same columns: what is loaded of the strip serves all of them.
template <int R, int N, class C>
void multiply_together(const Rows& rows, int64_t row, const float* strip, float* sums) {
  constexpr int64_t kWide = N * kWidth;
  const int64_t count = rows.end(row) - rows.begin(row);
  const C* columns = rows.columns.as<C>() + rows.begin(row);
  const float* values[R];
  for (int r = 0; r < R; ++r) values[r] = rows.values + rows.begin(row + r);
  Vector sum[R][N] = {};
  for (int64_t k = 0; k < count; ++k) {
    const Vector* x = reinterpret_cast<const Vector*>(strip + int64_t(columns[k]) * kWide);
    for (int r = 0; r < R; ++r) {
      const Vector value = values[r][k] - Vector{};
      for (int i = 0; i < N; ++i) sum[r][i] += value * x[i];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < N; ++i) reinterpret_cast<Vector*>(sums + (row + r) * kWide)[i] = sum[r][i];
}

// The rows of blocks times the strip.
template <int N, class C>
void multiply_alike(const Rows& rows, const float* strip, float* sums) {
  constexpr int R = N >= 8 ? 1 : 8 / N >= 4 ? 4 : 2;  // eight sums, in most registers' reach
  for (int64_t row = 0; row < rows.count;) {
    const int64_t left = rows.height - (rows.phase + row) % rows.height;
    const bool are_together = R > 1 && std::min(left, rows.count - row) >= R;
    if (are_together) multiply_together<R, N, C>(rows, row, strip, sums);
    else multiply_together<1, N, C>(rows, row, strip, sums);
    row += are_together ? R : 1;
  }
}

// `sums[row][lane]`: the rows times the strip of `x`.
template <int N, class C>
void multiply(const Rows& rows, const float* strip, int64_t in_size, float* sums) {
  if (rows.height > 1) return multiply_alike<N, C>(rows, strip, sums);
  const float* values = rows.values;
  const C* columns = rows.columns.as<C>();
  constexpr int64_t kWide = N * kWidth;
  constexpr int kAtOnce = N >= 8 ? 1 : N >= 4 ? 2 : 4;  // entries, so that eight sums hide the latency of an addition
  by_tiles<C>(rows, in_size, kWide, [=](int64_t row, int64_t begin, int64_t end, bool is_first) {
    Vector* out = reinterpret_cast<Vector*>(sums + row * kWide);
    Vector sum[kAtOnce][N];
    for (int i = 0; i < N; ++i) sum[0][i] = is_first ? Vector{} : out[i];
    for (int e = 1; e < kAtOnce; ++e)
      for (int i = 0; i < N; ++i) sum[e][i] = Vector{};
    int64_t k = begin;
    for (; k + kAtOnce <= end; k += kAtOnce)
      for (int e = 0; e < kAtOnce; ++e) {
        const Vector value = values[k + e] - Vector{};
        const Vector* x = reinterpret_cast<const Vector*>(strip + int64_t(columns[k + e]) * kWide);
        for (int i = 0; i < N; ++i) sum[e][i] += value * x[i];
      }
    for (; k < end; ++k) {
      const Vector value = values[k] - Vector{};
      const Vector* x = reinterpret_cast<const Vector*>(strip + int64_t(columns[k]) * kWide);
      for (int i = 0; i < N; ++i) sum[0][i] += value * x[i];
    }
    for (int i = 0; i < N; ++i) {
      for (int e = 1; e < kAtOnce; ++e) sum[0][i] += sum[e][i];
      out[i] = sum[0][i];
    }
  });
}

constexpr int64_t kAhead = 256;  // entries, a kilobyte of values

// The rows times one vector.
template <class C>
void multiply_vector(const Rows& rows, const float* x, float* y) {
  const float* values = rows.values;
  const C* columns = rows.columns.as<C>();
  for (int64_t row = 0; row < rows.count; ++row) {
    Vector sums[2] = {};
    float rest = 0;
    int64_t k = rows.begin(row);
    const int64_t end = rows.end(row);
    for (; k + 2 * kWidth <= end; k += 2 * kWidth) {
      __builtin_prefetch(values + k + kAhead);  // rows follow each other
      __builtin_prefetch(columns + k + kAhead);
      for (int half = 0; half < 2; ++half) {
        const C* at = columns + k + half * kWidth;
        Vector gathered = Vector{x[at[0]]};  // by a load that waits for nothing
        // Single loads, put together: on AMD's Zen 3 two thirds of the time of the gather instruction.
        for (int i = 1; i < kWidth; ++i) gathered[i] = x[at[i]];
        sums[half] += *reinterpret_cast<const Vector*>(values + k + half * kWidth) * gathered;
      }
    }
    for (; k < end; ++k) rest += values[k] * x[columns[k]];
    const Vector sum = sums[0] + sums[1];
    for (int i = 0; i < kWidth; ++i) rest += sum[i];
    y[row] = rest;
  }
}

// `sums[column][lane]`: adds each entry's row of the strip of `y`, scaled.
template <int N, class C>
void multiply_transposed(const Rows& rows, const float* strip, int64_t in_size, float* sums) {
  const float* values = rows.values;
  const C* columns = rows.columns.as<C>();
  constexpr int64_t kWide = N * kWidth;
  by_tiles<C>(rows, in_size, kWide, [=](int64_t row, int64_t begin, int64_t end, bool) {
    Vector y[N];
    for (int i = 0; i < N; ++i) y[i] = reinterpret_cast<const Vector*>(strip + row * kWide)[i];
    for (int64_t k = begin; k < end; ++k) {
      const Vector value = values[k] - Vector{};
      Vector* out = reinterpret_cast<Vector*>(sums + int64_t(columns[k]) * kWide);
      for (int i = 0; i < N; ++i) out[i] += value * y[i];
    }
  });
}

template <class C>
void multiply_vector_transposed(const Rows& rows, const float* y, float* sums) {
  const float* values = rows.values;
  const C* columns = rows.columns.as<C>();
  for (int64_t row = 0; row < rows.count; ++row) {
    const float scale = y[row];
    for (int64_t k = rows.begin(row), end = rows.end(row); k < end; ++k)
      sums[columns[k]] += values[k] * scale;
  }
}

inline Four fold(Vector sum) {
  Four parts[kWidth / 4];
  std::memcpy(parts, &sum, sizeof(sum));
  for (int i = 1; i < kWidth / 4; ++i) parts[0] += parts[i];
  return parts[0];
}

// `samples[k]`: for each entry, the product of a row of `y` and a row of `x`, all examples in one strip each.
template <class C>
void sample(const Rows& rows, const float* y, const float* x, int64_t in_size, int64_t lanes, float* samples) {
  const C* columns = rows.columns.as<C>();
  const int64_t count = lanes / kWidth;
  by_tiles<C>(rows, in_size, lanes, [=](int64_t row, int64_t begin, int64_t end, bool) {
    const Vector* left = reinterpret_cast<const Vector*>(y + row * lanes);
    auto right = [=](int64_t k) { return reinterpret_cast<const Vector*>(x + int64_t(columns[k]) * lanes); };
    int64_t k = begin;
    for (; k + 4 <= end; k += 4) {
      const Vector *a = right(k), *b = right(k + 1), *c = right(k + 2), *d = right(k + 3);
      Vector sum[4] = {};
      for (int64_t i = 0; i < count; ++i) {
        sum[0] += left[i] * a[i];
        sum[1] += left[i] * b[i];
        sum[2] += left[i] * c[i];
        sum[3] += left[i] * d[i];
      }
      Four parts[4] = {fold(sum[0]), fold(sum[1]), fold(sum[2]), fold(sum[3])};
      transpose_four(parts);
      store_four(samples + k, parts[0] + parts[1] + (parts[2] + parts[3]));
    }
    for (; k < end; ++k) {
      Vector sum = {};
      for (int64_t i = 0; i < count; ++i) sum += left[i] * right(k)[i];
      const Four part = fold(sum);
      samples[k] = part[0] + part[1] + (part[2] + part[3]);
    }
  });
}

}  // namespace eqsparse
