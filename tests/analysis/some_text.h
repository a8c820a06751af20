#pragma once

#include <initializer_list>

#include <hooks/tiny_transformer.h>

#include <scalevec/analysis/windows.h>

/// Documents of those lengths for the tiny model.
inline scalevec::Documents some_text(std::initializer_list<std::int64_t> lengths, unsigned seed = 7) {
  scalevec::Documents text;
  for (const std::int64_t length : lengths) {
    const at::Tensor ids = some_ids(length, seed++);
    text.emplace_back(ids.const_data_ptr<std::int64_t>(), ids.const_data_ptr<std::int64_t>() + length);
  }
  return text;
}
