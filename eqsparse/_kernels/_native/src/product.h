// Products of a whole matrix with a batch, as tasks for some threads.
#pragma once

#include <cstdlib>
#include <vector>

#include "share.h"
#include "source.h"

namespace eqsparse {

// Where a call gets memory and helpers.
class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  virtual ~Machine() {
    for (void* memory : taken_) std::free(memory);
  }

  virtual int64_t threads() const = 0;
  virtual void schedule(Task task) const = 0;

  double helper_costs = 40e3;  // nanoseconds of work that a helper must be worth

  // For as long as the call takes; a null pointer if there is no more. Not for use by helpers.
  template <class T>
  T* array(int64_t count) const {
    const int64_t lines = (std::max<int64_t>(count, 1) * int64_t(sizeof(T)) + 63) / 64;
    taken_.push_back(std::aligned_alloc(64, 64 * lines));
    return static_cast<T*>(taken_.back());
  }

  // For work of about so many nanoseconds.
  int64_t workers(double nanoseconds) const {
    return std::clamp<int64_t>(int64_t(nanoseconds / helper_costs), 1, std::max<int64_t>(threads(), 1));
  }

  void run(std::initializer_list<int64_t> phases, int64_t workers,
           const std::function<void(int, int64_t, int64_t)>& run) const {
    share(phases, workers, [this](Task task) { schedule(std::move(task)); }, run);
  }

 private:
  mutable std::vector<void*> taken_;
};

// y = x Aᵀ. False without memory, as the others.
bool product(const Source& a, int64_t examples, const Examples& x, const Examples& y, const Machine& machine);

// x = y A.
bool transposed_product(const Source& a, int64_t examples, const Dense& y, const Dense& x, const Machine& machine);

// samples = the entries of yᵀ x at the places that are stored; 0 for padding.
bool sampled_product(const Source& a, int64_t examples, const Dense& y, const Dense& x, void* samples,
                     const Machine& machine);

}  // namespace eqsparse
