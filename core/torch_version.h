#pragma once

#include <string>

namespace scalevec {

/// Version of the LibTorch in use, for results.
std::string torch_version();
/// The whole of it, "2.11.0+cpu": headers do not know the build's part. Once, before anything runs.
void set_torch_version(std::string version);

}  // namespace scalevec
