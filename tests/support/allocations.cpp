// A program's own operator new comes before that of the library. AddressSanitizer brings one that finds more.
#include "support/cost.h"

#ifndef __SANITIZE_ADDRESS__

#include <malloc.h>

#include <cstdlib>
#include <new>

using scalevec::testing::bytes_held;
using scalevec::testing::most_bytes_held;

void* operator new(std::size_t size) {
  void* const block = std::malloc(size);
  if (block == nullptr) throw std::bad_alloc();
  const auto bytes = static_cast<std::int64_t>(::malloc_usable_size(block));
  const std::int64_t held = bytes_held.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (held > most_bytes_held.load(std::memory_order_relaxed)) most_bytes_held = held;
  return block;
}

void operator delete(void* block) noexcept {
  bytes_held.fetch_sub(static_cast<std::int64_t>(::malloc_usable_size(block)), std::memory_order_relaxed);
  std::free(block);
}

void operator delete(void* block, std::size_t) noexcept { operator delete(block); }

#endif
