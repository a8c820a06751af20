#pragma once

#include <cstdlib>
#include <string_view>

namespace scalevec::testing {

/// `all` in a run that reaches the numbers of the promises (SCALEVEC_FULL=1), else `some`.
template <class T>
T in_full(T all, T some) {
  const char* const asked = std::getenv("SCALEVEC_FULL");
  return asked != nullptr && std::string_view(asked) == "1" ? all : some;
}

}  // namespace scalevec::testing
