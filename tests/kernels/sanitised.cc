// All products of random matrices against plain loops, to be compiled with sanitisers (`.ci/run` does). Arrays end
// where their contents end, so that no read or write past them goes unseen. Takes the number of widths to go through.
//
// It needs the standard library alone, so it also runs for other processors, emulated (Debian's g++-aarch64-linux-gnu
// and qemu-user):
//   aarch64-linux-gnu-g++ -static -std=c++17 -O3 -mcpu=neoverse-n1 -ffp-contract=fast
//       -I eqsparse/_kernels/_native/src tests/kernels/sanitised.cc -o /tmp/products && qemu-aarch64 /tmp/products 257

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <random>

#include "images.h"
#include "layouts.h"
#include "products.cc"

using namespace eqsparse;

namespace {

std::mt19937 random_bits(0);

int64_t below(int64_t limit) { return int64_t(random_bits() % uint64_t(limit)); }

float number() { return float(below(2001) - 1000) / 256; }

// Threads of its own, many even for small work.
class Threads final : public Machine {
 public:
  explicit Threads(int64_t count) : count_(count) { helper_costs = 1; }
  ~Threads() override {
    for (auto& thread : threads_) thread.join();
  }

  int64_t threads() const override { return count_; }
  void schedule(Task task) const override { threads_.emplace_back(std::move(task)); }

 private:
  int64_t count_;
  mutable std::vector<std::thread> threads_;
};

// An array of exactly that size, in memory of its own.
template <class T>
struct Exact {
  std::unique_ptr<T[]> data;
  int64_t size;

  explicit Exact(int64_t size) : data(new T[size]()), size(size) {}
  explicit Exact(const std::vector<T>& from) : Exact(int64_t(from.size())) {
    std::copy(from.begin(), from.end(), data.get());
  }
};

template <class T>
Exact<T> numbers(int64_t size) {
  Exact<T> array(size);
  for (int64_t i = 0; i < size; ++i) store(&array.data[i], number());
  return array;
}

struct Dims {
  int64_t out, in;
};

[[noreturn]] void fail(const char* what, Dims dims, int64_t batch) {
  std::printf("%s is wrong: %ld×%ld, batch %ld\n", what, long(dims.out), long(dims.in), long(batch));
  std::exit(1);
}

template <class T>
Numbers numbers_of(const Exact<T>& array) {
  return {array.data.get(), !std::is_same_v<T, float>};
}

template <class T>
Numbers nothing() {
  return {nullptr, !std::is_same_v<T, float>};
}

template <class C>
Indices indices_of(const Exact<C>& array) {
  return {array.data.get(), sizeof(C)};
}

// `places[k]`: row × in + column of the k-th value, or -1 for padding.
template <class T>
void check(const char* what, const Source& with_values, const Source& places_only, const T* values,
           const std::vector<int64_t>& places, Dims dims, int64_t batch, int64_t threads) {
  const bool is_half = !std::is_same_v<T, float>;
  const double tolerance = is_half ? 0.02 : 2e-5;
  auto x = numbers<T>(batch * dims.in), y = numbers<T>(batch * dims.out);
  Exact<T> out(batch * dims.out), back(batch * dims.in), samples(int64_t(places.size()));
  const Dense dense_x{x.data.get(), dims.in, is_half}, dense_y{y.data.get(), dims.out, is_half};
  const Dense dense_out{out.data.get(), dims.out, is_half}, dense_back{back.data.get(), dims.in, is_half};
  bool ok = product(with_values, batch, dense_x, dense_out, Threads(threads));
  ok = ok && transposed_product(with_values, batch, dense_y, dense_back, Threads(threads));
  ok = ok && sampled_product(places_only, batch, dense_y, dense_x, samples.data.get(), Threads(threads));
  if (!ok || with_values.is_wrong || places_only.is_wrong) fail(what, dims, batch);

  std::vector<double> expected_out(batch * dims.out), expected_back(batch * dims.in), expected(places.size());
  std::vector<double> size_out(expected_out.size(), 1), size_back(expected_back.size(), 1), size(expected.size(), 1);
  for (size_t k = 0; k < places.size(); ++k) {
    if (places[k] < 0) continue;
    const int64_t row = places[k] / dims.in, column = places[k] % dims.in;
    for (int64_t b = 0; b < batch; ++b) {
      const double from = to_float(x.data[b * dims.in + column]), to = to_float(y.data[b * dims.out + row]);
      const double value = to_float(values[k]);
      expected_out[b * dims.out + row] += value * from;
      size_out[b * dims.out + row] += std::abs(value * from);
      expected_back[b * dims.in + column] += value * to;
      size_back[b * dims.in + column] += std::abs(value * to);
      expected[k] += to * from;
      size[k] += std::abs(to * from);
    }
  }
  auto compare = [&](const char* part, const Exact<T>& found, const std::vector<double>& expected,
                     const std::vector<double>& size) {
    for (int64_t i = 0; i < found.size; ++i)
      if (!(std::abs(to_float(found.data[i]) - expected[i]) <= tolerance * size[i])) {
        std::printf("%s: ", part);
        fail(what, dims, batch);
      }
  };
  compare("product", out, expected_out, size_out);
  compare("transposed", back, expected_back, size_back);
  compare("samples", samples, expected, size);
}

// Empty rows, full ones, and others.
std::vector<bool> random_mask(Dims dims) {
  std::vector<bool> kept(dims.out * dims.in);
  for (int64_t row = 0; row < dims.out; ++row) {
    const int64_t kind = below(5), share = below(100);
    for (int64_t column = 0; column < dims.in; ++column)
      kept[row * dims.in + column] = kind == 0 ? false : kind == 1 ? true : below(100) < share;
  }
  return kept;
}

template <class T, class C>
void check_unstructured(Dims dims, int64_t batch, int64_t threads) {
  const auto kept = random_mask(dims);
  std::vector<int64_t> places;
  std::vector<C> columns;
  std::vector<int32_t> pointers{0};
  const int64_t bytes = (dims.in + 7) / 8;
  std::vector<uint8_t> bits(dims.out * bytes);
  int64_t fan_in = 0;
  for (int64_t row = 0; row < dims.out; ++row) {
    for (int64_t column = 0; column < dims.in; ++column)
      if (kept[row * dims.in + column]) {
        places.push_back(row * dims.in + column);
        columns.push_back(C(column));
        bits[row * bytes + column / 8] |= uint8_t(0x80 >> column % 8);
      }
    fan_in = std::max(fan_in, int64_t(places.size()) - pointers.back());
    pointers.push_back(int32_t(places.size()));
  }

  std::vector<T> by_entries(fan_in * dims.out);
  std::vector<C> columns_by_entries(fan_in * dims.out, C(dims.in));
  std::vector<int64_t> places_by_entries(fan_in * dims.out, -1);
  for (int64_t row = 0; row < dims.out; ++row)
    for (int64_t entry = 0; entry < pointers[row + 1] - pointers[row]; ++entry) {
      columns_by_entries[entry * dims.out + row] = columns[pointers[row] + entry];
      places_by_entries[entry * dims.out + row] = places[pointers[row] + entry];
    }
  auto fan_in_values = numbers<T>(fan_in * dims.out);
  Exact<C> fan_in_columns(columns_by_entries);
  auto make_fan_in = [&](Numbers values) {
    return FanIn(values, indices_of(fan_in_columns), fan_in, dims.out, dims.in);
  };
  check<T>("fan-in", make_fan_in(numbers_of(fan_in_values)), make_fan_in(nothing<T>()), fan_in_values.data.get(),
           places_by_entries, dims, batch, threads);

  for (int64_t i = below(3); i > 0; --i) {  // padding
    columns.push_back(C(dims.in));
    places.push_back(-1);
  }
  auto values = numbers<T>(int64_t(places.size()));
  for (size_t k = 0; k < places.size(); ++k)
    if (places[k] < 0) store(&values.data[k], NAN);
  const Exact<C> exact_columns(columns);
  const Exact<int32_t> exact_pointers(pointers);
  const Exact<uint8_t> exact_bits(bits);
  const int64_t stored = values.size;
  auto make_csr = [&](Numbers values) {
    return Csr(values, {exact_columns.data.get(), sizeof(C) == 4}, exact_pointers.data.get(), dims.out, dims.in, stored);
  };
  check<T>("CSR", make_csr(numbers_of(values)), make_csr(nothing<T>()), values.data.get(), places, dims, batch, threads);
  auto make_bitmask = [&](Numbers values) {
    return Bitmask(values, exact_bits.data.get(), bytes, dims.out, dims.in, stored);
  };
  check<T>("bit mask", make_bitmask(numbers_of(values)), make_bitmask(nothing<T>()), values.data.get(), places, dims,
           batch, threads);
}

template <class T>
void check_nm(int64_t out, int64_t runs, int64_t batch, int64_t threads) {
  const int64_t m = 2 + below(15), n = 1 + below(m - 1);
  const Dims dims{out, runs * m};
  int64_t width = 1;
  while ((1 << width) < m) ++width;
  const int64_t kept = runs * n, bytes = (kept + 7) / 8 * width;
  Exact<uint8_t> bits(out * bytes);
  std::vector<int64_t> places;
  for (int64_t row = 0; row < out; ++row)
    for (int64_t run = 0, k = 0; run < runs; ++run)
      for (int64_t place = 0, left = n; place < m; ++place)
        if (below(m - place) < left) {
          --left;
          places.push_back(row * dims.in + run * m + place);
          for (int64_t bit = 0; bit < width; ++bit)
            bits.data[row * bytes + (k * width + bit) / 8] |= uint8_t((place >> bit & 1) << (k * width + bit) % 8);
          ++k;
        }
  auto values = numbers<T>(int64_t(places.size()));
  auto make = [&](Numbers values) { return Nm(values, bits.data.get(), bytes, n, m, out, dims.in); };
  check<T>("N:M", make(numbers_of(values)), make(nothing<T>()), values.data.get(), places, dims, batch, threads);
}

template <class T>
void check_blocks(Dims dims, int64_t batch, int64_t threads) {
  const int64_t height = 1 + below(5), width = 1 + below(9);
  const int64_t down = (dims.out + height - 1) / height, across = (dims.in + width - 1) / width;
  std::vector<uint16_t> rows;
  std::vector<uint8_t> columns;
  std::vector<int64_t> places;
  auto add = [&](int64_t row, int64_t column) {
    rows.push_back(uint16_t(row));
    columns.push_back(uint8_t(column));
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const int64_t r = row * height + i, c = column * width + j;
        places.push_back(r < dims.out && c < dims.in ? r * dims.in + c : -1);
      }
  };
  for (int64_t row = 0; row < down; ++row)
    for (int64_t column = 0; column < std::min<int64_t>(across, 256); ++column)
      if (below(3) == 0) add(row, column);
  if (below(2)) add(down, 0);  // padding
  auto values = numbers<T>(int64_t(places.size()));
  const Exact<uint16_t> exact_rows(rows);
  const Exact<uint8_t> exact_columns(columns);
  auto make = [&](Numbers values) {
    return Blocks(values, indices_of(exact_rows), indices_of(exact_columns), exact_rows.size, height, width, dims.out,
                  dims.in);
  };
  check<T>("blocks", make(numbers_of(values)), make(nothing<T>()), values.data.get(), places, dims, batch, threads);
}

template <class T, class C>
void check_all(Dims dims, int64_t batch, int64_t threads) {
  check_unstructured<T, C>(dims, batch, threads);
  check_nm<T>(dims.out, 1 + dims.in / 16, batch, threads);
  check_blocks<T>(dims, batch, threads);
}

// Convolutions of random windows against plain loops.
template <class T>
void check_convolution(int64_t threads) {
  Window window;
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool is_used = axis > 0 || below(3) == 0;
    window.kernel[axis] = is_used ? 1 + below(4) : 1;
    window.stride[axis] = 1 + below(3);
    window.dilation[axis] = 1 + below(2);
    window.before[axis] = is_used ? below(4) : 0;
    window.in[axis] = is_used ? 1 + below(12) : 1;
    window.out[axis] = 1 + below(12);  // where nothing is met there are zeros
  }
  const int64_t channels = 1 + below(9), images = below(4), taps = window.taps();
  const Dims dims{1 + below(20), taps * channels};
  const auto kept = random_mask(dims);
  std::vector<uint16_t> columns;
  std::vector<int32_t> pointers{0};
  for (int64_t row = 0; row < dims.out; ++row) {
    for (int64_t column = 0; column < dims.in; ++column)
      if (kept[row * dims.in + column]) columns.push_back(uint16_t(column));
    pointers.push_back(int32_t(columns.size()));
  }
  auto values = numbers<T>(int64_t(columns.size())), x = numbers<T>(images * channels * window.inputs());
  Exact<T> y(images * dims.out * window.outputs());
  const Exact<uint16_t> exact_columns(columns);
  const Exact<int32_t> exact_pointers(pointers);
  const Csr a(numbers_of(values), {exact_columns.data.get(), false}, exact_pointers.data.get(), dims.out, dims.in,
              values.size);
  const Images<T> from(x.data.get(), channels, window), to(y.data.get(), dims.out, window);
  if (!product(a, images * window.outputs(), from, to, Threads(threads)) || a.is_wrong)
    fail("a convolution", dims, images);

  for (int64_t image = 0; image < images; ++image)
    for (int64_t place = 0; place < window.outputs(); ++place)
      for (int64_t row = 0; row < dims.out; ++row) {
        double expected = 0, size = 1;
        for (int64_t k = pointers[row]; k < pointers[row + 1]; ++k) {
          const int64_t channel = columns[k] % channels;
          int64_t tap = columns[k] / channels, rest = place, at = 0, step = 1;
          bool is_inside = true;
          for (int axis = kAxes - 1; axis >= 0; --axis) {
            const int64_t p = rest % window.out[axis] * window.stride[axis] - window.before[axis] +
                              tap % window.kernel[axis] * window.dilation[axis];
            is_inside = is_inside && p >= 0 && p < window.in[axis];
            at += p * step;
            step *= window.in[axis], rest /= window.out[axis], tap /= window.kernel[axis];
          }
          if (!is_inside) continue;
          const double term =
              double(to_float(values.data[k])) * to_float(x.data[(image * channels + channel) * window.inputs() + at]);
          expected += term, size += std::abs(term);
        }
        const double found = to_float(y.data[(image * dims.out + row) * window.outputs() + place]);
        if (!(std::abs(found - expected) <= (std::is_same_v<T, float> ? 2e-5 : 0.02) * size))
          fail("a convolution", dims, images);
      }
}

// Threads that stay, as XLA's do: a caller does not wait until they have returned from what they helped with.
class Pool {
 public:
  explicit Pool(int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      threads_.emplace_back([this] {
        while (true) {
          std::unique_lock lock(mutex_);
          wake_.wait(lock, [this] { return is_over_ || !tasks_.empty(); });
          if (tasks_.empty()) return;
          const Task task = std::move(tasks_.front());
          tasks_.pop_front();
          lock.unlock();
          task();
        }
      });
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void schedule(Task task) {
    {
      std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  bool is_over_ = false;
  std::vector<std::thread> threads_;
};

// All tasks are run, each phase after the one before, and no helper looks at a caller that is gone.
void check_sharing() {
  Pool pool(3);
  for (int64_t i = 0; i < 30000; ++i) {
    std::atomic<int64_t> first{0}, second{0};
    share({4, 3}, 4, [&](Task task) { pool.schedule(std::move(task)); }, [&](int phase, int64_t, int64_t) {
      if (phase == 1 && first != 4) fail("an order of phases", {4, 3}, i);
      ++(phase ? second : first);
    });
    if (first != 4 || second != 3) fail("a number of tasks", {4, 3}, i);
  }
}

// Indices that are nobody's are found, and nothing outside is touched.
void check_wrong() {
  Exact<float> values(2), x(4), y(2);
  const Dense dense_x{x.data.get(), 4, false}, dense_y{y.data.get(), 2, false};
  const int32_t wrong[][5] = {{4, 0, 0, 1, 2}, {-1, 0, 0, 1, 2}, {1 << 30, 0, 0, 1, 2}, {9, 9, 0, 2, 0}};
  for (const auto& given : wrong) {
    const Exact<int32_t> columns(std::vector<int32_t>(given, given + 2));
    const Exact<int32_t> pointers(std::vector<int32_t>(given + 2, given + 5));
    const Csr a(numbers_of(values), {columns.data.get(), true}, pointers.data.get(), 2, 4, 2);
    product(a, 1, dense_x, dense_y, Threads(1));
    if (!a.is_wrong) fail("a wrong index", {2, 4}, 1);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t widths = count > 1 ? std::atoi(arguments[1]) : 257;
  const int64_t batches[] = {0, 1, 2, 7, 8, 9, 16, 33, 64, 65, 130};
  for (int64_t width = 1; width <= widths; ++width) {
    const Dims dims{1 + below(40), width};
    const int64_t batch = batches[width % 11], threads = 1 + below(4);
    check_all<float, uint16_t>(dims, batch, threads);
    check_all<BFloat16, int32_t>(dims, batch, threads);
  }
  for (int64_t batch : batches) check_all<float, uint16_t>({1 + below(300), 1}, batch, 3);
  for (int64_t batch : {1, 64}) check_unstructured<float, uint16_t>({70, 2500}, batch, 3);  // by tiles of columns
  check_all<float, int32_t>({3, 66000}, 9, 2);  // columns of 32 bits
  for (int64_t i = 0; i < widths / 4; ++i) {
    check_convolution<float>(1 + below(4));
    check_convolution<BFloat16>(1 + below(4));
  }
  check_wrong();
  check_sharing();
  std::printf("products of %ld widths are right\n", long(widths));
}
