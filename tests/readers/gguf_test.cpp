#include <scalevec/core/checkpoint/gguf.h>

#include <unistd.h>

#include <limits>
#include <random>
#include <thread>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

#include "readers/errors.h"
#include "readers/gguf_builder.h"
#include "readers/gguf_walk.h"
#include "support/files.h"
#include "support/temporary_folder.h"

using namespace scalevec;
using namespace scalevec::testing;

namespace {

GgufFile in_memory(const std::string& text) { return GgufFile::from_memory(as_span(text)); }

// One value of every type, and tensors of several.
GgufBuilder every_type() {
  GgufBuilder file;
  file.text("general.architecture", "qwen3");
  file.value<std::uint8_t>("u8", 0, 200).value<std::int8_t>("i8", 1, -100);
  file.value<std::uint16_t>("u16", 2, 60'000).value<std::int16_t>("i16", 3, -30'000);
  file.value<std::uint32_t>("u32", 4, 4'000'000'000).value<std::int32_t>("i32", 5, -2'000'000'000);
  file.value<float>("f32", 6, 0.1f).value<std::uint8_t>("yes", 7, 1).value<std::uint8_t>("no", 7, 0);
  file.value<std::uint64_t>("u64", 10, std::uint64_t{1} << 63)
      .value<std::int64_t>("i64", 11, -(std::int64_t{1} << 62));
  file.value<double>("f64", 12, 0.1);
  file.pair("bools", kv_array, Bytes().add(kv_bool).add<std::uint64_t>(2).raw(std::string("\1\0", 2)));
  file.pair("layers", kv_array, Bytes().add(kv_i32).add<std::uint64_t>(3).add(1).add(-2).add(3));
  file.pair("factors", kv_array, Bytes().add(kv_f64).add<std::uint64_t>(1).add(0.25));
  file.pair("empty", kv_array, Bytes().add(kv_string).add<std::uint64_t>(0));
  file.tensor("blk.0.attn_norm.weight", {2}, type_bf16, std::string("\x80\x3f\x00\x40", 4));
  file.tensor("odd", {3, 1, 2}, type_i8, "abcdef");
  return file;
}

std::vector<std::string> seeds() {
  GgufBuilder old = small_model();
  old.version = 2;
  GgufBuilder aligned{.alignment = 64};
  aligned.value<std::uint32_t>("general.alignment", kv_u32, 64).text("k", "v");
  aligned.tensor("a", {2, 3}, type_f32, floats({1, 2, 3, 4, 5, 6}))
      .tensor("b", {32}, type_q4_0, std::string(18, 'x'));
  return {old.build(), every_type().build(), aligned.build()};
}

// Reads a damaged file in full. Nothing but an Error may come out; whether it was read.
bool survives(const std::string& text) {
  try {
    walk(in_memory(text));
    return true;
  } catch (const Error& error) {
    CHECK(error.message().size() <= 1024);
    CHECK(error.fields().file == "memory");
    return false;
  }
}

}  // namespace

TEST_CASE("GGUF: a small model is read as it was written, in both versions") {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBuilder builder = small_model();
    builder.version = version;
    const std::string text = builder.build();
    const GgufFile file = in_memory(text);
    CHECK(file.header().version == version);
    CHECK(file.header().data_begin == builder.data_begin());
    CHECK(file.size() == text.size());
    CHECK(file.architecture() == "llama");
    CHECK(file.model_key("x") == "llama.x");
    CHECK(file.block_count() == 2);
    REQUIRE(file.tensors().size() == 3);
    const TensorInfo& up = file.tensors()[2];
    CHECK(up.name == "blk.1.ffn_up.weight");
    CHECK(up.shape == std::vector<std::uint64_t>{2, 32});
    CHECK(up.dtype == DType::q8_0);
    CHECK(up.dtype_text == "Q8_0");
    CHECK(up.bytes == 68);
    CHECK(up.begin == builder.data_begin() + 64);
    CHECK(up.file == 0);
    CHECK(file.find("blk.1.ffn_up.weight") == &up);
    CHECK(file.find("blk.1.ffn_up") == nullptr);

    std::vector<float> values(4);
    file.read(file.tensors()[1], std::as_writable_bytes(std::span(values)));
    CHECK(values == std::vector<float>{5, 6, 7, 8});
    std::vector<std::byte> part(8);
    file.read(file.tensors()[0], 8, part);
    CHECK(std::memcmp(part.data(), floats({3, 4}).data(), 8) == 0);
  }
}

TEST_CASE("GGUF metadata: every type through its accessor, and refused by the others") {
  const std::string text = every_type().build();
  const GgufFile file = in_memory(text);
  const GgufMetadata& metadata = file.metadata();
  CHECK(metadata.size() == 17);
  CHECK(metadata.key(1) == "u8");
  CHECK(metadata.keys().back() == "empty");
  CHECK(metadata.integer("u8") == 200);
  CHECK(metadata.integer("i8") == -100);
  CHECK(metadata.integer("u16") == 60'000);
  CHECK(metadata.integer("i16") == -30'000);
  CHECK(metadata.integer("u32") == 4'000'000'000);
  CHECK(metadata.integer("i32") == -2'000'000'000);
  CHECK(metadata.integer("i64") == -(std::int64_t{1} << 62));
  CHECK(metadata.number("i8") == -100);
  CHECK(metadata.number("u64") == 0x1p63);
  CHECK(metadata.number("f32") == 0.1f);
  CHECK(metadata.number("f64") == 0.1);
  CHECK(metadata.boolean("yes"));
  CHECK(!metadata.boolean("no"));
  CHECK(metadata.text("general.architecture") == "qwen3");
  CHECK(metadata.booleans("bools") == std::vector<bool>{true, false});
  CHECK(metadata.integers("layers") == std::vector<std::int64_t>{1, -2, 3});
  CHECK(metadata.numbers("layers") == std::vector<double>{1, -2, 3});
  CHECK(metadata.numbers("factors") == std::vector<double>{0.25});
  CHECK(metadata.strings("empty").empty());
  CHECK(metadata.count("layers") == 3);
  CHECK(metadata.element_type("layers") == GgufType::i32);
  CHECK(metadata.type("layers") == GgufType::array);

  CHECK(metadata.integer("absent", 7) == 7);
  CHECK(metadata.integer("u8", 7) == 200);
  CHECK(metadata.number("absent", 0.5) == 0.5);
  CHECK(metadata.boolean("absent", true));
  CHECK(metadata.text("absent", "x") == "x");

  const auto refused = [&](std::string_view key, auto&& call, ErrorCode code = ErrorCode::schema) {
    const ErrorFields fields = refusal(call, code);
    CHECK(fields.key == key);
    CHECK(fields.file == "memory");
    CHECK(!fields.expected.empty());
    CHECK(!fields.found.empty());
  };
  refused("absent", [&] { metadata.integer("absent"); });
  refused("absent", [&] { metadata.type("absent"); });
  refused("f32", [&] { metadata.integer("f32"); });
  refused("yes", [&] { metadata.integer("yes"); });
  refused("yes", [&] { metadata.number("yes"); });
  refused("u8", [&] { metadata.boolean("u8"); });
  refused("u8", [&] { metadata.text("u8"); });
  refused("u8", [&] { metadata.integer("u8", 1), metadata.text("u8", "x"); });
  refused("u8", [&] { metadata.count("u8"); });
  refused("layers", [&] { metadata.integer("layers"); });
  refused("layers", [&] { metadata.strings("layers"); });
  refused("layers", [&] { metadata.booleans("layers"); });
  refused("empty", [&] { metadata.integers("empty"); });
  refused("factors", [&] { metadata.integers("factors"); });
  refused(
      "u64", [&] { metadata.integer("u64"); }, ErrorCode::config);
}

TEST_CASE("GGUF metadata: strings keep their bytes, in one pass over a large vocabulary") {
  constexpr std::uint64_t count = 300'000;
  Bytes tokens;
  tokens.add(kv_string).add(count);
  for (std::uint64_t i = 0; i < count; ++i) tokens.string("token " + std::to_string(i));
  GgufBuilder builder;
  const std::string text = builder.pair("tokens", kv_array, tokens).build();
  const double start = processor_seconds();
  const GgufFile file = in_memory(text);
  const auto all = file.metadata().strings("tokens");
  CHECK(processor_seconds() - start < 2.0);
  REQUIRE(all.size() == count);
  CHECK(all.front() == "token 0");
  CHECK(all.back() == "token 299999");

  // Views outlive the file as long as a copy of the metadata does.
  GgufMetadata copy;
  std::vector<std::string_view> views;
  {
    const std::string small = small_model().build();
    const GgufFile gone = in_memory(small);
    copy = gone.metadata();
    views = gone.metadata().strings("tokenizer.ggml.tokens");
  }
  CHECK(views == std::vector<std::string_view>{"<s>", "a", "\xff"});
}

TEST_CASE("GGUF: every prefix of a seed is refused, but for a cut in the last padding") {
  for (const std::string& seed : seeds()) {
    const GgufFile whole = in_memory(seed);
    std::uint64_t end = 0;
    for (const TensorInfo& tensor : whole.tensors()) end = std::max(end, tensor.begin + tensor.bytes);
    REQUIRE(seed.size() <= 8192);
    for (std::size_t length = 0; length <= seed.size(); ++length) {
      CAPTURE(length);
      CHECK(survives(seed.substr(0, length)) == (length >= end));
    }
  }
}

TEST_CASE("GGUF: every bit flip of a header, and random damage, give a value or a typed error") {
  int cases = 0, read = 0;
  std::mt19937_64 random(1);
  for (const std::string& seed : seeds()) {
    const std::uint64_t header = in_memory(seed).header().data_begin;
    std::string damaged = seed;
    for (std::uint64_t bit = 0; bit < 8 * header; ++bit, ++cases) {
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
      read += survives(damaged);
      damaged[bit / 8] = seed[bit / 8];
    }
    for (int i = 0; i < 11'000; ++i, ++cases) {
      damaged = seed;
      for (std::uint64_t change = random() % 4 + 1; change > 0; --change) {
        const std::size_t at = random() % header;
        switch (random() % 3) {
          case 0:
            damaged[at] = static_cast<char>(random());
            break;
          case 1:
            damaged[at] = random() % 2 == 0 ? '\xff' : '\0';
            break;
          default:
            damaged.replace(at, std::min<std::size_t>(8, header - at), 8,
                            random() % 2 == 0 ? '\xff' : '\x7f');
        }
      }
      read += survives(damaged);
    }
  }
  CHECK(cases > 40'000);
  CHECK(read > 100);  // otherwise the damage is too coarse to reach what follows the header
}

TEST_CASE("GGUF: a header beyond 256 MiB and a million keys or tensors are refused before they are read") {
  const TemporaryFolder folder;
  const auto sparse = [&](const std::string& start, std::uint64_t size) {
    const std::filesystem::path path = folder / "sparse.gguf";
    write_text(path, start);
    std::filesystem::resize_file(path, size);
    return path;
  };
  constexpr std::uint64_t tebibyte = std::uint64_t{1} << 40;
  const double start = processor_seconds();
  const std::string header =
      Bytes().raw("GGUF").add(3u).add<std::uint64_t>(0).add<std::uint64_t>(1).string("k");
  const std::string text = Bytes().raw(header).add(kv_string).add(tebibyte / 2);
  CHECK(refusal([&] { GgufFile{sparse(text, tebibyte)}; }, ErrorCode::limit).key == "k");
  const std::string array = Bytes().raw(header).add(kv_array).add(kv_u8).add(tebibyte / 2);
  CHECK(refusal([&] { GgufFile{sparse(array, tebibyte)}; }, ErrorCode::limit).key == "k");
  const std::string counts =
      Bytes().raw("GGUF").add(3u).add<std::uint64_t>((1 << 20) + 1).add<std::uint64_t>(0);
  CHECK(refusal([&] { GgufFile{sparse(counts, tebibyte)}; }, ErrorCode::limit).offset == 8);
  CHECK(processor_seconds() - start < 1.0);
}

TEST_CASE("GGUF: a large sparse file opens at once and is read where asked") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "large.gguf";
  GgufBuilder builder;
  constexpr std::uint64_t bytes = std::uint64_t{100} << 30;
  builder.info("large", {bytes}, type_i8, 0).info("t", {1}, type_f32, bytes);
  write_text(path, builder.build());
  std::filesystem::resize_file(path, builder.data_begin() + bytes + 4);
  const double start = processor_seconds();
  const GgufFile file(path);
  float value = 1;
  file.read(*file.find("t"), std::as_writable_bytes(std::span(&value, 1)));
  CHECK(processor_seconds() - start < 1.0);
  CHECK(value == 0);
  CHECK(file.path() == path);
  CHECK(file.size() == builder.data_begin() + bytes + 4);
}

TEST_CASE("GGUF: reading refuses a wrong size, a file that changed, and one that shrank") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.gguf";
  const std::string text = small_model().build();
  write_text(path, text);
  const GgufFile file(path);
  const TensorInfo& tensor = file.tensors()[0];
  std::vector<std::byte> room(16), small(15), large(17);
  file.read(tensor, room);
  CHECK(refusal([&] { file.read(tensor, small); }, ErrorCode::size).tensor == tensor.name);
  CHECK(refusal([&] { file.read(tensor, large); }, ErrorCode::size).tensor == tensor.name);
  CHECK(refusal([&] { file.read(tensor, 1, room); }, ErrorCode::size).tensor == tensor.name);
  CHECK(refusal([&] { file.read(tensor, std::numeric_limits<std::uint64_t>::max(), room); }, ErrorCode::size)
            .tensor == tensor.name);

  REQUIRE(::truncate(path.c_str(), static_cast<off_t>(text.size() - 64)) == 0);
  ErrorFields fields = refusal([&] { file.read(tensor, room); }, ErrorCode::io);
  CHECK(fields.tensor == tensor.name);
  CHECK(fields.offset.has_value());

  write_text(path, text);
  const GgufFile again(path);
  write_text(folder / "other", text);
  std::filesystem::rename(folder / "other", path);
  fields = refusal([&] { again.read(tensor, room); }, ErrorCode::state);
  CHECK(fields.tensor == tensor.name);
}

TEST_CASE("GGUF: several threads read one file") {
  const TemporaryFolder folder;
  write_text(folder / "model.gguf", small_model().build());
  const GgufFile file(folder / "model.gguf");
  std::vector<int> sums(4);
  {
    std::vector<std::jthread> threads;
    for (int& sum : sums) {
      threads.emplace_back([&] {
        for (int i = 0; i < 200; ++i) {
          std::vector<float> values(4);
          file.read(file.tensors()[static_cast<std::size_t>(i % 2)],
                    std::as_writable_bytes(std::span(values)));
          for (const float value : values) sum += static_cast<int>(value);
        }
      });
    }
  }
  for (const int sum : sums) CHECK(sum == 100 * 10 + 100 * 26);
}

TEST_CASE("UTF-8: the first byte that begins no valid sequence") {
  CHECK(first_invalid_utf8("") == std::string_view::npos);
  CHECK(first_invalid_utf8("a\n\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80") == std::string_view::npos);
  CHECK(first_invalid_utf8("\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80") == std::string_view::npos);
  for (const std::string bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    CAPTURE(bad);
    CHECK(first_invalid_utf8("ab" + bad) == 2);
  }
}
