#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>
#include <support/cost.h>

#include <scalevec/core/error.h>

/// What `call` was refused with; fails the test if it was not, or if the refusal cost more than a bad input
/// may.
template <class Call>
scalevec::ErrorFields refusal(Call&& call, scalevec::ErrorCode code, std::string* message = nullptr) {
  const scalevec::testing::Cost cost;
  try {
    call();
  } catch (const scalevec::Error& error) {
    const double seconds = cost.seconds();
    const std::int64_t bytes = cost.bytes();
    CHECK_MESSAGE(error.code() == code, error.message());
    CHECK(error.message().size() <= 1024);
    CHECK(std::none_of(error.message().begin(), error.message().end(),
                       [](unsigned char c) { return c < 0x20 || c == 0x7f; }));
    CHECK(seconds < 1.0 * scalevec::testing::slowness);
    CHECK(bytes < 64 << 20);
    if (message != nullptr) *message = error.message();
    return error.fields();
  }
  FAIL_CHECK("nothing was thrown, expected ", std::string(scalevec::code_name(code)));
  return {};
}

/// As `refusal`, for a row of the table of bad inputs: the text is the same every time.
template <class Call>
scalevec::ErrorFields row_refusal(Call&& call, scalevec::ErrorCode code, std::string* message = nullptr,
                                  int times = 50) {
  std::string first, again;
  const scalevec::ErrorFields fields = refusal(call, code, &first);
  for (int i = 1; i < times; ++i) {
    refusal(call, code, &again);
    CHECK(again == first);
  }
  if (message != nullptr) *message = first;
  return fields;
}

/// The message of a refusal with E_ADDR.
template <class Call>
std::string address_refusal(Call&& call) {
  std::string message;
  refusal(call, scalevec::ErrorCode::addr, &message);
  return message;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
