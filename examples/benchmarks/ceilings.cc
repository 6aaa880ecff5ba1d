// The two ceilings of one thread of this machine: what it can compute, and what it can read.

#include <chrono>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kWidth)));

namespace {
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

// Multiplications and additions of floats in a second: 12 sums that do not wait for each other.
extern "C" double flops(int64_t rounds) {
  Vector sums[12], factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  for (Vector& sum : sums) sum = Vector{};
  const double start = now();
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = sums[i] * factor + term;
#if defined(__x86_64__)
    asm volatile("" : "+x"(factor));  // not all rounds at once
#else
    asm volatile("" : "+w"(factor));
#endif
  }
  const double seconds = now() - start;
  volatile float keep = 0;
  for (int i = 0; i < 12; ++i) keep = keep + sums[i][0];
  return 2.0 * 12 * kWidth * double(rounds) / seconds;
}

// Bytes read in a second.
extern "C" double bandwidth(const float* data, int64_t count) {
  Vector sums[4] = {};
  const Vector* from = reinterpret_cast<const Vector*>(data);
  const int64_t vectors = count / kWidth / 4 * 4;
  const double start = now();
  for (int64_t i = 0; i < vectors; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += from[i + j];
  const double seconds = now() - start;
  volatile float keep = 0;
  for (const Vector& sum : sums) keep = keep + sum[0];
  return 4.0 * kWidth * double(vectors) / seconds;
}
