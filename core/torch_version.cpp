#include <scalevec/core/torch_version.h>

#include <utility>

#include <torch/headeronly/version.h>

namespace scalevec {
namespace {

std::string& version_in_use() {
  static std::string version = TORCH_VERSION;
  return version;
}

}  // namespace

std::string torch_version() { return version_in_use(); }
void set_torch_version(std::string version) { version_in_use() = std::move(version); }

}  // namespace scalevec
