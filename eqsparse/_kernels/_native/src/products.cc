// The products. Users wait while this is compiled, so only the inner loops are templates (`rows.h`): by the type of
// the columns and by the width of a strip.

#include "product.h"

namespace eqsparse {

// Nanoseconds that a product takes, about, on one thread.
double cost_of(int64_t entries, int64_t batch, int64_t dense) {
  return batch == 1 ? 0.5 * (entries + dense) : 0.03 * (entries + dense) * (batch + 16);
}

// Some for each worker, so that none waits long for the others; of vectors so few that columns, which are read twice,
// are in the cache the second time.
int64_t rows_per_task(int64_t rows, int64_t workers, int64_t entries, int64_t batch) {
  const int64_t fair = (rows / (8 * workers) + 7) / 8 * 8;
  const int64_t cached = batch == 1 ? 16384 * rows / std::max<int64_t>(entries, 1) : kRows;
  return std::clamp<int64_t>(std::min(fair, cached), 8, kRows);
}

constexpr int64_t kStripsForEach = 4;  // strips for each worker, from which on each takes whole ones

int64_t parts_of(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Calls `f` with two constants: the number of vectors of a strip (0 for a single example), and a column of the type
// that the rows have.
template <int N = 0, class F>
void for_lanes(int64_t lanes, const Rows& rows, F f) {
  constexpr std::integral_constant<int, N> n;
  if (lanes == (N ? N * kWidth : 1)) return rows.columns.is_wide ? f(n, int32_t()) : f(n, uint16_t());
  if constexpr (N * kWidth < kLanes) for_lanes<N ? 2 * N : kFewest / kWidth>(lanes, rows, f);
}

// Room for each worker to decode rows in. `ok` is false without memory.
struct Rooms {
  int64_t most, step;
  float* values;
  int32_t *columns, *begins, *ends;
  bool ok;

  Rooms(const Source& a, int64_t step, int64_t workers, const Machine& machine)
      : most(a.most(step)), step(step) {
    values = machine.array<float>(workers * most);
    columns = machine.array<int32_t>(workers * most);
    begins = machine.array<int32_t>(workers * step);
    ends = machine.array<int32_t>(workers * step);
    ok = values && columns && begins && ends;
  }

  Room of(int64_t worker) const {
    return {values + worker * most, columns + worker * most, begins + worker * step, ends + worker * step};
  }
};

constexpr int64_t kPackColumns = 512;  // columns of a batch that one task lays out in strips

int64_t packing_tasks(int64_t size, const Batch& batch) { return batch.strips * parts_of(size, kPackColumns); }

// One task of laying out a batch in strips.
void pack(const Examples& examples, int64_t size, const Batch& batch, int64_t task, float* strips) {
  const int64_t parts = parts_of(size, kPackColumns), strip = task / parts, first = task % parts * kPackColumns;
  examples.read(batch, strip, first, std::min(kPackColumns, size - first),
                strips + batch.first(strip) * size + first * batch.lanes(strip));
}

// Some rows times a strip.
void multiply_strip(const Rows& rows, const float* strip, int64_t in_size, int64_t lanes, float* sums) {
  for_lanes(lanes, rows, [&](auto n, auto column) {
    using C = decltype(column);
    if constexpr (n == 0) multiply_vector<C>(rows, strip, sums);
    else multiply<n, C>(rows, strip, in_size, sums);
  });
}

// Strip by strip: each is laid out by the worker that multiplies it, so it is in that core's cache, and only there.
bool product_by_strips(const Source& a, const Batch& batch, const Examples& x, const Examples& y, int64_t workers,
                       const Machine& machine) {
  const int64_t step = std::min(a.out_size, kRows), size = a.in_size * batch.wide;
  float* strips = machine.array<float>(workers * size);
  float* sums = machine.array<float>(workers * step * kLanes);
  const Rooms rooms(a, step, workers, machine);
  if (!strips || !sums || !rooms.ok) return false;
  machine.run({batch.strips}, workers, [&](int, int64_t strip, int64_t worker) {
    float *from = strips + worker * size, *own = sums + worker * step * kLanes;
    x.read(batch, strip, 0, a.in_size, from);
    for (int64_t first = 0; first < a.out_size; first += step) {
      const int64_t count = std::min(step, a.out_size - first);
      const Rows rows = a.rows(first, count, rooms.of(worker));
      multiply_strip(rows, from, a.in_size, batch.lanes(strip), own);
      y.write(batch, strip, first, count, own);
    }
  });
  return true;
}

bool product(const Source& a, int64_t examples, const Examples& x, const Examples& y, const Machine& machine) {
  const Batch batch(examples, a.in_size);
  if (examples == 0 || a.out_size == 0) return true;
  const int64_t workers = machine.workers(cost_of(a.stored, examples, a.in_size + a.out_size));
  if (batch.strips >= kStripsForEach * workers) return product_by_strips(a, batch, x, y, workers, machine);
  const int64_t step = rows_per_task(a.out_size, workers, a.stored, examples), blocks = parts_of(a.out_size, step);
  float* strips = machine.array<float>(a.in_size * batch.all_lanes());
  float* sums = machine.array<float>(workers * step * kLanes);
  const Rooms rooms(a, step, workers, machine);
  if (!strips || !sums || !rooms.ok) return false;

  machine.run({packing_tasks(a.in_size, batch), blocks}, workers, [&](int phase, int64_t task, int64_t worker) {
    if (phase == 0) return pack(x, a.in_size, batch, task, strips);
    const int64_t first = task * step, count = std::min(step, a.out_size - first);
    const Rows rows = a.rows(first, count, rooms.of(worker));
    float* own = sums + worker * step * kLanes;
    for (int64_t strip = 0; strip < batch.strips; ++strip) {
      multiply_strip(rows, strips + batch.first(strip) * a.in_size, a.in_size, batch.lanes(strip), own);
      y.write(batch, strip, first, count, own);
    }
  });
  return true;
}

// Threads take strips of the batch; where there are too few, parts of the rows, and their sums are added up.
bool transposed_product(const Source& a, int64_t examples, const Dense& y, const Dense& x, const Machine& machine) {
  const Batch batch(examples, a.in_size);
  if (examples == 0 || a.in_size == 0) return true;
  const int64_t workers = machine.workers(2 * cost_of(a.stored, examples, a.in_size + a.out_size));
  const int64_t parts = batch.strips >= workers ? 1 : workers, size = a.in_size * batch.all_lanes();
  const int64_t step = rows_per_task(a.out_size, parts, a.stored, examples), blocks = parts_of(a.out_size, step);
  float* strips = machine.array<float>(a.out_size * batch.all_lanes());
  float* sums = machine.array<float>(parts * size);
  const Rooms rooms(a, step, workers, machine);
  if (!strips || !sums || !rooms.ok) return false;

  auto add_rows = [&](int64_t task, int64_t worker) {
    const int64_t strip = task / parts, part = task % parts, lanes = batch.lanes(strip);
    float* own = sums + part * size + batch.first(strip) * a.in_size;
    std::fill(own, own + lanes * a.in_size, 0.f);
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      const int64_t first = block * step, count = std::min(step, a.out_size - first);
      const Rows rows = a.rows(first, count, rooms.of(worker));
      const float* from = strips + batch.first(strip) * a.out_size + first * lanes;
      for_lanes(lanes, rows, [&](auto n, auto column) {
        using C = decltype(column);
        if constexpr (n == 0) multiply_vector_transposed<C>(rows, from, own);
        else multiply_transposed<n, C>(rows, from, a.in_size, own);
      });
    }
  };
  auto add_parts = [&](int64_t task) {
    const int64_t columns = parts_of(a.in_size, kPackColumns), strip = task / columns;
    const int64_t first = task % columns * kPackColumns, count = std::min(kPackColumns, a.in_size - first);
    const int64_t lanes = batch.lanes(strip);
    float* total = sums + batch.first(strip) * a.in_size + first * lanes;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < count * lanes; ++i) total[i] += total[part * size + i];
    x.write(batch, strip, first, count, total);
  };
  machine.run({packing_tasks(a.out_size, batch), batch.strips * parts, packing_tasks(a.in_size, batch)}, workers,
              [&](int phase, int64_t task, int64_t worker) {
                if (phase == 0) return pack(y, a.out_size, batch, task, strips);
                if (phase == 1) return add_rows(task, worker);
                add_parts(task);
              });
  return true;
}

bool sampled_product(const Source& a, int64_t examples, const Dense& y, const Dense& x, void* samples,
                     const Machine& machine) {
  const int64_t lanes = (examples + kWidth - 1) / kWidth * kWidth;
  const int64_t workers = machine.workers(cost_of(a.stored, lanes, a.in_size + a.out_size));
  const int64_t step = rows_per_task(a.out_size, workers, a.stored, examples), blocks = parts_of(a.out_size, step);
  float* left = machine.array<float>(a.out_size * lanes);
  float* right = machine.array<float>(a.in_size * lanes);
  const Rooms rooms(a, step, workers, machine);
  float* own = machine.array<float>(workers * rooms.most);
  if (!left || !right || !rooms.ok || !own) return false;

  const int64_t above = parts_of(a.out_size, kPackColumns), across = parts_of(a.in_size, kPackColumns);
  machine.run({above + across + 1, blocks}, workers, [&](int phase, int64_t task, int64_t worker) {
    if (phase == 0) {
      if (task == above + across) return a.clear(samples);
      const Dense& dense = task < above ? y : x;
      const int64_t first = (task < above ? task : task - above) * kPackColumns;
      const int64_t count = std::min(kPackColumns, dense.size - first);
      return dense.read(0, examples, first, count, lanes, (task < above ? left : right) + first * lanes);
    }
    const int64_t first = task * step, count = std::min(step, a.out_size - first);
    const Rows rows = a.rows(first, count, rooms.of(worker));
    float* to = a.samples(rows, samples, own + worker * rooms.most);
    const auto sample_rows = rows.columns.is_wide ? sample<int32_t> : sample<uint16_t>;
    sample_rows(rows, left + first * lanes, right, a.in_size, lanes, to);
    a.put(first, rows, to, samples);
  });
  return true;
}

}  // namespace eqsparse
