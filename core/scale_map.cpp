#include <scalevec/core/scale_map.h>

#include <set>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/error.h>

namespace scalevec {

ScaleMap::ScaleMap(std::vector<ScaleVector> vectors) : vectors_(std::move(vectors)) {
  std::set<std::string_view> names;
  const auto add = [&](std::string_view name) {
    if (names.insert(name).second) return;
    fail(ErrorCode::dup,
         fmt::format(
             "two scale vectors of one model are named '{}'; every address and native name must be unique",
             name),
         {.tensor = std::string(name)});
  };
  sites_.reserve(vectors_.size());
  for (const ScaleVector& vector : vectors_) {
    add(vector.address());
    const std::string& native = vector.site().native;
    if (!native.empty() && native != vector.address()) add(native);
    sites_.push_back(vector.site());
    base_bytes_.push_back(vector.bytes());
    base_digests_.push_back(vector.digest());
  }
}

std::size_t ScaleMap::index_of(std::string_view name) const {
  for (std::size_t i = 0; i < sites_.size(); ++i) {
    if (sites_[i].address.str() == name || (!name.empty() && sites_[i].native == name)) return i;
  }
  std::vector<std::string> names;
  for (const Site& site : sites_) {
    names.push_back(site.address.str());
    if (!site.native.empty()) names.push_back(site.native);
  }
  std::string message = fmt::format("no scale vector is named '{}'", printable(name));
  if (names.empty()) message += "; this model has none";
  const std::string elsewhere = address_elsewhere(name, sites_);
  if (!elsewhere.empty()) {
    fail(ErrorCode::addr, message + "; in another container that is the name of " + elsewhere,
         {.tensor = std::string(name), .expected = elsewhere});
  }
  const char* before = "; the nearest are ";
  for (const std::string& close : nearest(name, names)) {
    message += before + close;
    before = ", ";
  }
  fail(ErrorCode::addr, message, {.tensor = std::string(name)});
}

const ScaleVector& ScaleMap::at(std::string_view name) const { return vectors_[index_of(name)]; }

std::vector<Selection> ScaleMap::select(const Selector& selector) const { return selector.select(sites_); }

void ScaleMap::restore(std::size_t index) const { vectors_[index].overwrite(base_bytes_[index]); }

}  // namespace scalevec
