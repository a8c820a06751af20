#include <scalevec/core/sha256.h>

#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace scalevec;

namespace {

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

TEST_CASE("SHA-256: the examples of FIPS 180-4") {
  CHECK(sha256_hex({}) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex(bytes("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex(bytes("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")) ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256_hex(bytes(
            "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnop"
            "qrsmnopqrstnopqrstu")) == "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(sha256_hex(bytes(std::string(1'000'000, 'a'))) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256: pieces of any length give the digest of the whole, and asking does not end it") {
  std::mt19937_64 random(1);
  std::string text(1000, '\0');
  for (char& c : text) c = static_cast<char>(random());
  for (std::size_t length = 0; length <= text.size(); length += length < 200 ? 1 : 37) {
    const std::string whole = text.substr(0, length);
    Sha256 hash;
    for (std::size_t at = 0; at < length;) {
      const std::size_t piece = std::min<std::size_t>(random() % 130, length - at);
      hash.update(bytes(whole).subspan(at, piece));
      at += piece;
      CHECK(hash.hex() == sha256_hex(bytes(whole).first(at)));
    }
    CHECK(hash.hex() == sha256_hex(bytes(whole)));
  }
}

TEST_CASE("SHA-256: the processor's instructions and the portable rounds agree") {
  std::mt19937_64 random(2);
  for (std::size_t blocks = 0; blocks < 40; ++blocks) {
    std::vector<std::byte> data(64 * blocks);
    for (std::byte& b : data) b = static_cast<std::byte>(random());
    std::array<std::uint32_t, 8> fast;
    for (std::uint32_t& word : fast) word = static_cast<std::uint32_t>(random());
    auto portable = fast;
    detail::sha256_blocks(fast, data);
    detail::sha256_blocks_portable(portable, data);
    CHECK(fast == portable);
  }
}
