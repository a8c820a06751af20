#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>
#include <support/cost.h>
#include <support/full.h>

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

/// As `refusal`, for a row of the table of bad inputs: the text is the same in fifty attempts; where one
/// takes longer than 10 ms in three, unless the promises' numbers are asked for.
template <class Call>
scalevec::ErrorFields row_refusal(Call&& call, scalevec::ErrorCode code, std::string* message = nullptr) {
  std::string first, again;
  const scalevec::testing::Cost cost;
  const scalevec::ErrorFields fields = refusal(call, code, &first);
  const int times =
      cost.seconds() > 0.01 * scalevec::testing::slowness ? scalevec::testing::in_full(50, 3) : 50;
  for (int i = 1; i < times; ++i) {
    refusal(call, code, &again);
    CHECK(again == first);
  }
  if (message != nullptr) *message = first;
  return fields;
}

/// Every field as it must be: what is left out of `want` must be empty.
inline void check_fields(const scalevec::ErrorFields& fields, const scalevec::ErrorFields& want,
                         const std::string& message = {}) {
  CAPTURE(message);
  CHECK(fields.file == want.file);
  CHECK(fields.tensor == want.tensor);
  CHECK(fields.key == want.key);
  CHECK(fields.offset.value_or(~0ULL) == want.offset.value_or(~0ULL));  // numbers, so that they are printed
  CHECK(fields.index.value_or(-1) == want.index.value_or(-1));
  CHECK(fields.expected == want.expected);
  CHECK(fields.found == want.found);
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
