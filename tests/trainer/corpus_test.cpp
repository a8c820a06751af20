#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <support/errors.h>
#include <support/temporary_folder.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/sha256.h>
#include <scalevec/trainer/corpus.h>
#include <scalevec/trainer/markov_chain.h>

using namespace scalevec;
using nlohmann::json;
using scalevec::testing::error_of;
using scalevec::testing::TemporaryFolder;

namespace {

constexpr std::array<std::string_view, 2> names{"train", "validation"};

std::string sha256(const std::string& bytes) {
  return "sha256:" + sha256_hex(std::as_bytes(std::span(bytes)));
}

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string bytes_of(const std::vector<std::uint32_t>& ids, int width) {
  std::string bytes;
  for (const std::uint32_t id : ids)
    for (int k = 0; k < width; ++k) bytes += static_cast<char>(id >> 8 * k & 0xff);
  return bytes;
}

// A folder as `scalevec data build` writes it.
struct Folder {
  TemporaryFolder folder;
  json record;

  Folder(const std::vector<std::uint32_t>& train, const std::vector<std::uint32_t>& validation,
         std::int64_t vocabulary) {
    const int width = vocabulary <= 65'536 ? 2 : 4;
    const std::string tokenizer = "{}";
    record = {{"schema", "scalevec corpus 1"},
              {"tool", "test"},
              {"vocabulary", vocabulary},
              {"end", 0},
              {"dtype", width == 2 ? "uint16" : "uint32"},
              {"tokenizer", {{"sha256", sha256(tokenizer)}, {"trained_on_bytes", 0}}},
              {"validation_share", 0.5},
              {"sources", json::array()},
              {"skipped", json::object()}};
    std::string text =
        fmt::format("scalevec corpus 1\nvocabulary {}\nend 0\ntokenizer {}\n", vocabulary, sha256(tokenizer));
    const std::array sides{&train, &validation};
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string bytes = bytes_of(*sides[i], width);
      write(folder / (std::string(names[i]) + ".bin"), bytes);
      record["splits"][names[i]] = {
          {"documents", 1}, {"bytes", 1}, {"ids", sides[i]->size()}, {"sha256", sha256(bytes)}};
      text += fmt::format("{} {} {}\n", names[i], sides[i]->size(), sha256(bytes));
    }
    record["digest"] = sha256(text);
    write(folder / "tokenizer.json", tokenizer);
    save();
  }
  void save() const { write(folder / "corpus.json", record.dump()); }
  Corpus open() const { return Corpus::open(folder.path()); }
};

std::vector<std::uint32_t> counting(std::uint32_t count, std::uint32_t vocabulary) {
  std::vector<std::uint32_t> ids(count);
  for (std::uint32_t i = 0; i < count; ++i) ids[i] = i * 7919 % vocabulary;
  return ids;
}

std::vector<std::int64_t> row(const at::Tensor& ids, std::int64_t i) {
  const std::int64_t width = ids.size(1);
  const std::int64_t* first = ids.const_data_ptr<std::int64_t>() + i * width;
  return {first, first + width};
}

}  // namespace

TEST_CASE("Corpus: windows are the ids of the file, each beginning with the last id of the one before") {
  for (const std::uint32_t vocabulary : {300U, 65'536U, 65'537U, 200'000U}) {
    CAPTURE(vocabulary);
    const auto train = counting(1'000, vocabulary), validation = counting(11, vocabulary);
    const Folder made(train, validation, vocabulary);
    const Corpus corpus = made.open();
    CHECK(corpus.vocabulary() == vocabulary);
    CHECK(corpus.ids(Split::train) == 1'000);
    CHECK(corpus.ids(Split::validation) == 11);
    CHECK(corpus.digest() == made.record["digest"]);
    CHECK(std::isnan(corpus.entropy()));
    CHECK(std::isnan(corpus.entropy(5)));
    corpus.verify();
    for (const std::int64_t context : {1, 5, 9, 10, 11, 333, 999, 1'000}) {
      CAPTURE(context);
      const std::int64_t windows = corpus.windows(Split::train, context);
      CHECK(windows == 999 / context);
      CHECK(corpus.windows(Split::validation, context) == 10 / context);
      std::vector<std::int64_t> backwards;
      for (std::int64_t i = windows; i-- > 0;) backwards.push_back(i);
      const at::Tensor ids = corpus.read(Split::train, backwards, context);
      CHECK((ids.scalar_type() == at::kLong));
      CHECK(ids.size(0) == windows);
      CHECK(ids.size(1) == context + 1);
      for (std::int64_t i = 0; i < windows; ++i) {
        const auto begin = train.begin() + (windows - 1 - i) * context;
        CHECK(row(ids, i) == std::vector<std::int64_t>(begin, begin + context + 1));
      }
    }
    CHECK(row(corpus.read(Split::validation, std::vector<std::int64_t>{1}, 5), 0) ==
          std::vector<std::int64_t>(validation.begin() + 5, validation.end()));
  }
}

TEST_CASE("Corpus: empty splits have no windows") {
  const Folder made({}, {5}, 300);
  const Corpus corpus = made.open();
  CHECK(corpus.windows(Split::train, 1) == 0);
  CHECK(corpus.windows(Split::validation, 1) == 0);
  CHECK(corpus.read(Split::train, {}, 4).size(0) == 0);
}

TEST_CASE("Corpus: an id that is no token is refused with its byte, by read and nowhere else") {
  for (const std::int64_t vocabulary : {300, 70'000}) {
    std::vector<std::uint32_t> ids = counting(100, 300);
    ids[57] = static_cast<std::uint32_t>(vocabulary);
    const Folder made(ids, {}, vocabulary);
    const Corpus corpus = made.open();
    corpus.read(Split::train, std::vector<std::int64_t>{0, 4, 6}, 10);
    const auto caught = error_of([&] { corpus.read(Split::train, std::vector<std::int64_t>{0, 5}, 10); });
    CHECK(caught.code == ErrorCode::format);
    CHECK(caught.fields.file == (made.folder / "train.bin").string());
    CHECK(caught.fields.offset == (vocabulary == 300 ? 114 : 228));
    CHECK(caught.fields.found == std::to_string(vocabulary));
    CHECK(caught.fields.expected == fmt::format("an id below {}", vocabulary));
  }
}

TEST_CASE("Corpus: refusals of corpus.json and of the files beside it") {
  struct Row {
    std::string what;
    std::function<void(Folder&)> damage;
    ErrorCode code;
    std::string file, key;
  };
  const auto field = [](std::string path, json value) {
    return [path, value](Folder& made) {
      made.record[json::json_pointer(path)] = value;
      made.save();
    };
  };
  const auto without = [](std::string path) {
    return [path](Folder& made) {
      const json::json_pointer pointer(path);
      made.record[pointer.parent_pointer()].erase(pointer.back());
      made.save();
    };
  };
  const auto file = [](std::string name, std::string bytes) {
    return [name, bytes](Folder& made) { write(made.folder / name, bytes); };
  };
  const auto gone = [](std::string name) {
    return [name](Folder& made) { std::filesystem::remove(made.folder / name); };
  };
  using enum ErrorCode;
  const std::vector<Row> rows{
      {"no JSON", file("corpus.json", "{\"schema\": "), ErrorCode::json, "corpus.json", ""},
      {"empty", file("corpus.json", ""), ErrorCode::json, "corpus.json", ""},
      {"no schema", file("corpus.json", "{}"), schema, "corpus.json", "schema"},
      {"a list", file("corpus.json", "[]"), schema, "corpus.json", ""},
      {"a key twice", file("corpus.json", "{\"end\": 0, \"end\": 1}"), dup, "corpus.json", "end"},
      {"another schema", field("/schema", "scalevec corpus 2"), schema, "corpus.json", "schema"},
      {"unknown field", field("/more", 1), schema, "corpus.json", "more"},
      {"missing field", without("/end"), schema, "corpus.json", "end"},
      {"vocabulary as text", field("/vocabulary", "300"), schema, "corpus.json", "vocabulary"},
      {"vocabulary 0", field("/vocabulary", 0), schema, "corpus.json", "vocabulary"},
      {"vocabulary 2^63", field("/vocabulary", 1ULL << 63), schema, "corpus.json", "vocabulary"},
      {"vocabulary 300.0", field("/vocabulary", 300.0), schema, "corpus.json", "vocabulary"},
      {"another vocabulary", field("/vocabulary", 301), state, "corpus.json", "digest"},
      {"end beyond", field("/end", 300), schema, "corpus.json", "end"},
      {"another end", field("/end", 1), state, "corpus.json", "digest"},
      {"wider ids", field("/dtype", "uint32"), schema, "corpus.json", "dtype"},
      {"no splits", field("/splits", 1), schema, "corpus.json", "splits"},
      {"unknown split", field("/splits/test", 1), schema, "corpus.json", "splits.test"},
      {"no train split", without("/splits/train"), schema, "corpus.json", "splits.train"},
      {"negative count", field("/splits/train/ids", -1), schema, "corpus.json", "splits.train.ids"},
      {"no digest", field("/splits/train/sha256", "sha256:12"), schema, "corpus.json", "splits.train.sha256"},
      {"another digest", field("/digest", sha256("x")), state, "corpus.json", "digest"},
      {"another file's digest", field("/splits/train/sha256", sha256("x")), state, "corpus.json", "digest"},
      {"another tokenizer's digest", field("/tokenizer/sha256", sha256("x")), state, "corpus.json", "digest"},
      {"one id more", field("/splits/train/ids", 101), size, "train.bin", ""},
      {"short", file("train.bin", std::string(199, '\0')), size, "train.bin", ""},
      {"long", file("validation.bin", std::string(22, '\0')), size, "validation.bin", ""},
      {"no train.bin", gone("train.bin"), path, "train.bin", ""},
      {"no corpus.json", gone("corpus.json"), path, "corpus.json", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Folder made(counting(100, 300), counting(10, 300), 300);
    made.open().verify();
    row.damage(made);
    const auto caught = error_of([&] { made.open(); });
    CAPTURE(caught.message);
    CHECK(caught.code == row.code);
    CHECK(caught.fields.file == (made.folder / row.file).string());
    CHECK(caught.fields.key == row.key);
  }
}

TEST_CASE("Corpus: verify finds every file that is not the one that was written") {
  for (const std::string name : {"train.bin", "validation.bin", "tokenizer.json"}) {
    const Folder made(counting(100, 300), counting(10, 300), 300);
    std::fstream(made.folder / name, std::ios::in | std::ios::out | std::ios::binary).seekp(1).put('\1');
    const Corpus corpus = made.open();
    const auto caught = error_of([&] { corpus.verify(); });
    CHECK(caught.code == ErrorCode::state);
    CHECK(caught.fields.file == (made.folder / name).string());
  }
  const Folder made(counting(100, 300), counting(10, 300), 300);
  std::filesystem::remove(made.folder / "tokenizer.json");
  CHECK(error_of([&] { made.open().verify(); }).code == ErrorCode::path);
}

TEST_CASE("Corpus: windows that are not there") {
  const Folder made(counting(101, 300), {}, 300);
  const Corpus file = made.open(), drawn = Corpus::synthetic({.train_ids = 110, .validation_ids = 0});
  for (const Corpus& corpus : {file, drawn}) {
    CHECK(corpus.windows(Split::train, 10) == 10);
    CHECK(corpus.windows(Split::validation, 10) == 0);
    for (const std::int64_t window : {-1, 10}) {
      const auto caught = error_of([&] {
        corpus.read(Split::train, std::vector<std::int64_t>{0, window}, 10);
      });
      CHECK(caught.code == ErrorCode::value);
      CHECK(caught.fields.index == window);
    }
    CHECK(error_of([&] { corpus.read(Split::validation, std::vector<std::int64_t>{0}, 10); }).code ==
          ErrorCode::value);
    for (const std::int64_t context : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 40}) {
      CHECK(error_of([&] { (void)corpus.windows(Split::train, context); }).code == ErrorCode::value);
      CHECK(error_of([&] { (void)corpus.entropy(context); }).code == ErrorCode::value);
      CHECK(error_of([&] { corpus.read(Split::train, {}, context); }).code == ErrorCode::value);
    }
  }
}

TEST_CASE("Corpus: a synthetic source is its chain; windows are functions of seed, split and number") {
  const SyntheticSource source{.vocabulary = 32, .order = 2, .concentration = 0.2, .seed = 4};
  const Corpus corpus = Corpus::synthetic(source);
  const MarkovChain chain(32, 2, 0.2, 4);
  CHECK(corpus.vocabulary() == 32);
  CHECK(corpus.entropy() == chain.entropy());
  CHECK(corpus.entropy(9) == chain.entropy(9));
  CHECK(corpus.windows(Split::train, 127) == std::int64_t{1} << 33);
  CHECK(corpus.windows(Split::validation, 127) == 1 << 13);

  const std::vector<std::int64_t> some{7, 0, (std::int64_t{1} << 33) - 1};
  const at::Tensor ids = corpus.read(Split::train, some, 127);
  const at::Tensor again =
      Corpus::synthetic(source).read(Split::train, std::vector<std::int64_t>{some[2]}, 127);
  CHECK(row(again, 0) == row(ids, 2));
  CHECK(row(ids, 0) != row(ids, 1));
  CHECK(row(corpus.read(Split::validation, std::vector<std::int64_t>{7}, 127), 0) != row(ids, 0));

  SyntheticSource other = source;
  other.seed = 5;
  CHECK(row(Corpus::synthetic(other).read(Split::train, some, 127), 0) != row(ids, 0));
  CHECK(Corpus::synthetic(source).digest() == corpus.digest());
  for (const auto& change : std::vector<std::function<void(SyntheticSource&)>>{
           [](SyntheticSource& s) { s.seed = 5; }, [](SyntheticSource& s) { s.concentration = 0.3; },
           [](SyntheticSource& s) { s.train_ids = 5; }, [](SyntheticSource& s) { s.validation_ids = 5; },
           [](SyntheticSource& s) { s.order = 1; }, [](SyntheticSource& s) { s.vocabulary = 33; }}) {
    SyntheticSource changed = source;
    change(changed);
    CHECK(Corpus::synthetic(changed).digest() != corpus.digest());
  }
  for (const std::int64_t ids_of_train : {std::int64_t{-1}, (std::int64_t{1} << 60) + 1})
    CHECK(error_of([&] { Corpus::synthetic({.train_ids = ids_of_train}); }).code == ErrorCode::value);
}
