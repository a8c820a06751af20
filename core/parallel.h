/// at::parallel_for, on torch's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>

#ifndef INTRA_OP_PARALLEL
#error "without -fopenmp, ATen's parallel_for is a loop on one thread"
#endif

namespace scalevec {

/// f(0) to f(count - 1), one by one to whichever thread is free: for work that is unequal.
template <class F>
void one_by_one(std::int64_t count, const F& f) {
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, std::min<std::int64_t>(count, at::get_num_threads()), 1,
                   [&](std::int64_t, std::int64_t) {
                     for (std::int64_t i = next++; i < count; i = next++) f(i);
                   });
}

}  // namespace scalevec
