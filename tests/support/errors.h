#pragma once

#include <string>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

namespace scalevec::testing {

struct Caught {
  ErrorCode code;
  ErrorFields fields;
  std::string message;
};

/// What `call` throws; the test fails if it throws nothing, or something that is no Error.
template <class Call>
Caught error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.message().size() <= 1024);
    return {error.code(), error.fields(), error.message()};
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace scalevec::testing
