// A training of a tiny net, and what it is compared by.
#pragma once

#include <cstring>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>

#include <scalevec/trainer/training.h>

#include <support/check.h>

namespace scalevec::testing {

inline Experiment tiny(const std::string& more = "",
                       const std::string& optimizer = "learning_rate = 0.01\n") {
  return Experiment::parse(
      "[model]\npreset = \"nano\"\nwidth = 32\nlayers = 2\nhead_dim = 8\nstrategy = \"hg+dnp+or\"\n"
      "[data]\nvocabulary = 37\ncontext = 24\nbatch = 6\n" +
      std::string("[optimizer]\n") + optimizer + "[schedule]\nwarmup = 3\n[train]\nsteps = 12\n" + more);
}

inline std::map<std::string, at::Tensor> copy_of(const Training& training) {
  std::map<std::string, at::Tensor> out;
  for (const auto& [name, tensor] : training.optimizer().tensors()) out[name] = tensor.clone();
  return out;
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

inline void check_same_bits(const std::map<std::string, at::Tensor>& a,
                            const std::map<std::string, at::Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    CAPTURE(name);
    CHECK(same_bits(tensor, b.at(name)));
  }
}

}  // namespace scalevec::testing
