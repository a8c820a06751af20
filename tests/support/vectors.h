#pragma once

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <scalevec/core/dtype.h>
#include <scalevec/core/site.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/workspace.h>

#include "support/tiny_model.h"

namespace scalevec::testing {

/// Scale vectors without a model: what a Workspace needs, and no more.
struct Vectors {
  std::vector<Site> sites;
  std::vector<StoredVector> stored;

  Workspace workspace() const {
    return Workspace(sites, [this](std::size_t i) { return stored[i]; });
  }
  void add(const std::string& address, StoredVector vector) {
    Site site;
    site.address = Address::parse(address);
    site.native = "native." + address;
    site.offset = vector.offset;
    site.parametrisation = vector.offset == 0.0 ? Parametrisation::plain : Parametrisation::offset;
    site.width = vector.width();
    sites.push_back(site);
    stored.push_back(std::move(vector));
  }
};

inline StoredVector random_vector(std::mt19937_64& random, std::int64_t width, bool strange) {
  static const std::pair<const char*, DType> dtypes[] = {
      {"F64", DType::f64}, {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}};
  const auto& [name, dtype] = dtypes[random() % 4];
  const std::string bytes = random_values(random, name, static_cast<std::uint64_t>(width), true, strange);
  StoredVector vector{dtype, random() % 2 == 0 ? 0.0 : 1.0, std::vector<std::byte>(bytes.size())};
  std::memcpy(vector.bytes.data(), bytes.data(), bytes.size());
  return vector;
}

inline Vectors random_vectors(std::mt19937_64& random, int layers, std::int64_t width, bool strange) {
  Vectors out;
  for (int i = 0; i < layers; ++i) {
    for (const char* name : {"attn.input_norm", "mlp.input_norm"}) {
      out.add("layers." + std::to_string(i) + "." + name, random_vector(random, width, strange));
    }
  }
  out.add("final_norm", random_vector(random, width, strange));
  return out;
}

/// Any operation that these vectors can take.
inline Operation random_operation(std::mt19937_64& random, const std::vector<Site>& sites, Allow allow) {
  const Site& site = sites[random() % sites.size()];
  const auto width = static_cast<std::uint64_t>(site.width);
  std::string selector = random() % 8 == 0 ? "**" : site.address.str();
  std::uint64_t count = width;
  if (random() % 4 != 0) {
    const std::uint64_t begin = random() % width, end = begin + 1 + random() % (width - begin);
    selector += "@" + std::to_string(begin) + ":" + std::to_string(end);
    count = end - begin;
  }
  const double number = static_cast<double>(random() % 4000) / 1000.0 - 1.0;
  switch (random() % 5) {
    case 0:
      return rescale(selector, number, allow);
    case 1:
      return set(selector, number, allow);
    case 2: {
      std::vector<double> values(count);
      for (double& value : values) value = static_cast<double>(random() % 4000) / 1000.0 - 1.0;
      return set(selector, values, allow);
    }
    case 3:
      return ablate(selector, random() % 2 == 0 ? "zero" : "one", allow);
    default:
      return ablate(selector, "mean", allow);
  }
}

}  // namespace scalevec::testing
