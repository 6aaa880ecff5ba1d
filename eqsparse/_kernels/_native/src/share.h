// Work shared between threads of a pool that belongs to someone else.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <thread>

namespace eqsparse {

using Task = std::function<void()>;

constexpr int kPhases = 4;  // the most

// Runs `run(phase, task, worker)` for all tasks of the phases, each phase after the one before. `phases` counts the
// tasks of each; `worker` is below `workers`, and no two tasks of one worker run at a time.
//
// The caller works too, and waits only for tasks that a thread has begun: so nothing waits for a place in the pool,
// whose threads may all be callers.
inline void share(std::initializer_list<int64_t> phases, int64_t workers, const std::function<void(Task)>& schedule,
                  const std::function<void(int, int64_t, int64_t)>& run) {
  int64_t ends[kPhases], total = 0;
  for (size_t i = 0; i < phases.size(); ++i) ends[i] = total += phases.begin()[i];

  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();  // outlives this call in helpers that come too late to find a task
  auto wait_for = [](State& state, int64_t tasks) {
    for (int64_t spins = 0; state.done.load(std::memory_order_acquire) < tasks; ++spins)
      if (spins > 100) std::this_thread::yield();
  };
  // Once a helper's last task is done the caller may be gone, and all that is captured here: `total` is a copy.
  auto work = [&](State& state, int64_t total, int64_t task, int64_t worker) {
    for (; task < total; task = state.next.fetch_add(1)) {
      int phase = 0;
      while (task >= ends[phase]) ++phase;
      int64_t start = phase ? ends[phase - 1] : 0;
      wait_for(state, start);
      run(phase, task - start, worker);
      state.done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t worker = 1; worker < std::min(workers, total); ++worker)
    schedule([state, total, worker, &work] {
      int64_t task = state->next.fetch_add(1);
      if (task < total) work(*state, total, task, worker);  // else the caller, and `work` with it, may be gone
    });
  work(*state, total, state->next.fetch_add(1), 0);
  wait_for(*state, total);
}

}  // namespace eqsparse
