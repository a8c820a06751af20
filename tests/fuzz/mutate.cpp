#include <algorithm>
#include <string>

#include "fuzz.h"

namespace scalevec::fuzz {
namespace {

std::size_t below(Random& random, std::size_t limit) { return limit == 0 ? 0 : random() % limit; }

const std::string& one_of(const std::vector<std::string>& all, Random& random) {
  return all[below(random, all.size())];
}

void replace_number(std::string& input, Random& random) {
  static const std::vector<std::string> numbers{"0",
                                                "1",
                                                "-1",
                                                "8",
                                                "255",
                                                "65536",
                                                "2.0",
                                                "4294967296",
                                                "4294967295",
                                                "1000000000",
                                                "1e400",
                                                "-0",
                                                "00",
                                                "9223372036854775807",
                                                "9223372036854775808",
                                                "18446744073709551616"};
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto from = input.begin() + static_cast<std::ptrdiff_t>(below(random, input.size() + 1));
  const auto first = std::find_if(from, input.end(), digit);
  const auto last = std::find_if_not(first, input.end(), digit);
  if (first != last) input.replace(first, last, one_of(numbers, random));
}

void mutate_once(std::string& input, Random& random) {
  static const std::vector<std::string> all_words = words(), all_seeds = seeds();
  const std::size_t at = below(random, input.size() + 1);
  const std::size_t length = std::min(below(random, 32), input.size() - at);
  switch (random() % 8) {
    case 0:
      if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << random() % 8));
      break;
    case 1:
      if (at < input.size()) input[at] = static_cast<char>(random());
      break;
    case 2:
      input.erase(at, length);
      break;
    case 3:
      input.insert(below(random, input.size() + 1), input.substr(at, length));
      break;
    case 4:
      input.insert(at, one_of(all_words, random));
      break;
    case 5:
      input.replace(at, length, one_of(all_words, random));
      break;
    case 6:
      replace_number(input, random);
      break;
    default: {
      const std::string& other = one_of(all_seeds, random);
      const std::size_t from = below(random, other.size() + 1);
      input.replace(at, length, other, from, below(random, 64));
    }
  }
}

}  // namespace

void mutate(std::string& input, Random& random) {
  for (std::size_t count = 1 + below(random, 4); count > 0; --count) mutate_once(input, random);
  if (input.size() > 1 << 16) input.resize(1 << 16);
  if (random() % 4 != 0) repair(input, random);
}

}  // namespace scalevec::fuzz
