#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/error.h>

// A target, <format>_fuzz.cpp (and _seeds.cpp), defines the first four functions. It is built into two
// programs: <format>_fuzz, which mutates the seeds by itself and runs in every test, and, where the compiler
// has libFuzzer, <format>_libfuzzer.

/// Reads `data` and checks what must hold for any bytes: a value that is sound, or a typed error.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace scalevec::fuzz {

using Random = std::mt19937;

/// Legal inputs to start from, small ones.
std::vector<std::string> seeds();
/// Pieces that the format gives a meaning.
std::vector<std::string> words();
/// Puts lengths and counts right that a mutation has spoiled, so that mutants get past the first check.
void repair(std::string& input, Random& random);

/// Some small changes to `input`: bits, bytes, pieces moved, words, numbers, parts of a seed.
void mutate(std::string& input, Random& random);

/// Ends the process, which is what a fuzzer sees.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}

/// An error's message must be short and printable.
inline void require_sound(const Error& error) {
  require(error.message().size() <= 1024, "a message of at most 1 KiB");
  for (const char c : error.message())
    require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F, "a printable message");
  require(error.message().starts_with(code_name(error.code())), "a message that begins with its code");
}

}  // namespace scalevec::fuzz
