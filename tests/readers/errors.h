#pragma once

#include <optional>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

/// What `call` was refused with; fails the test if it was not.
template <class Call>
scalevec::ErrorFields refusal(Call&& call, scalevec::ErrorCode code, std::string* message = nullptr) {
  try {
    call();
  } catch (const scalevec::Error& error) {
    CHECK_MESSAGE(error.code() == code, error.message());
    CHECK(error.message().size() <= 1024);
    if (message != nullptr) *message = error.message();
    return error.fields();
  }
  FAIL_CHECK("nothing was thrown, expected ", std::string(scalevec::code_name(code)));
  return {};
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
