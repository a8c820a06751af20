// Rows C1 to C9 and C13 of the table of bad inputs, F2 for folders, and the promise that paths stay inside
// (P16).
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/hf_folder.h>
#include <scalevec/core/error.h>

#include "readers/bounds.h"
#include "readers/errors.h"
#include "support/files.h"
#include "support/open_watch.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

namespace fs = std::filesystem;
using namespace scalevec;
using namespace std::string_literals;
using testing::entry;
using testing::OpenWatch;
using testing::safetensors;
using testing::TemporaryFolder;
using testing::write_text;

namespace {

const std::string index_name = "model.safetensors.index.json";
const std::string shard_a = "model-00001-of-00002.safetensors", shard_b = "model-00002-of-00002.safetensors";

std::string f32(std::string_view name, std::string_view data) {
  return safetensors("{" + entry(name, "F32", "[2]", "[0,8]") + "}", data);
}

std::string index_text(const std::string& map, const std::string& total = "16") {
  return "{\"metadata\":{\"total_size\":" + total + "},\"weight_map\":{" + map + "}}";
}

const std::string good_map = "\"a\":\"" + shard_a + "\",\"b\":\"" + shard_b + "\"";

// A good model of two shards, one tensor of eight bytes in each.
struct Model {
  TemporaryFolder outer;
  fs::path folder = outer / "model";
  Model() {
    fs::create_directory(folder);
    write_text(folder / shard_a, f32("a", "aaaaaaaa"));
    write_text(folder / shard_b, f32("b", "bbbbbbbb"));
    write_text(folder / index_name, index_text(good_map));
    write_text(folder / "config.json", R"({"model_type":"llama","rms_norm_eps":1e-5})");
  }
  void index(const std::string& text) const { write_text(folder / index_name, text); }
  ErrorFields refused(ErrorCode code, HfFolder::Options options = {}) const {
    const auto before = testing::listing(outer.path());
    const ErrorFields fields = row_refusal([&] { HfFolder model(folder, options); }, code);
    CHECK(contains(fields.file, folder.string()));
    CHECK(testing::listing(outer.path()) == before);
    return fields;
  }
  std::string index_path() const { return (folder / index_name).string(); }
};

std::string content(const HfFolder& model, std::string_view name) {
  const TensorInfo* tensor = model.find(name);
  REQUIRE(tensor != nullptr);
  std::string out(tensor->bytes, '\0');
  model.read(*tensor, std::as_writable_bytes(std::span(out)));
  return out;
}

}  // namespace

TEST_CASE("hf folder: shards, one file in a folder, and a file alone") {
  const Model model;
  SUBCASE("shards") {
    const HfFolder folder(model.folder);
    REQUIRE(folder.files().size() == 2);
    CHECK(folder.files()[0].path() == model.folder / shard_a);
    REQUIRE(folder.tensors().size() == 2);
    CHECK(folder.find("b")->file == 1);
    CHECK(content(folder, "a") == "aaaaaaaa");
    CHECK(content(folder, "b") == "bbbbbbbb");
    std::string part(3, '\0');
    folder.read(*folder.find("b"), 5, std::as_writable_bytes(std::span(part)));
    CHECK(part == "bbb");
    CHECK(refusal([&] { folder.read(*folder.find("b"), 6, std::as_writable_bytes(std::span(part))); },
                  ErrorCode::size)
              .tensor == "b");
    CHECK(folder.config()["model_type"] == "llama");
    CHECK(folder.config()["rms_norm_eps"].get<double>() == 1e-5);
  }
  SUBCASE("one file") {
    fs::remove(model.folder / index_name);
    fs::rename(model.folder / shard_a, model.folder / "model.safetensors");
    const HfFolder folder(model.folder);
    CHECK(folder.files().size() == 1);
    CHECK(content(folder, "a") == "aaaaaaaa");
    CHECK(folder.find("b") == nullptr);
  }
  SUBCASE("a file alone takes the configuration beside it") {
    const HfFolder file(model.folder / shard_b);
    CHECK(file.folder() == model.folder);
    CHECK(content(file, "b") == "bbbbbbbb");
    CHECK(file.config()["model_type"] == "llama");
  }
  SUBCASE("an index of the one file") {
    fs::rename(model.folder / shard_a, model.folder / "model.safetensors");
    model.index(index_text(R"("a":"model.safetensors")", "8"));
    CHECK(HfFolder(model.folder).tensors().size() == 1);
  }
  SUBCASE("an index without metadata, and with a sum written as a float") {
    model.index("{\"weight_map\":{" + good_map + "}}");
    CHECK(HfFolder(model.folder).tensors().size() == 2);
    model.index(index_text(good_map, "16.0"));
    CHECK(HfFolder(model.folder).tensors().size() == 2);
  }
}

TEST_CASE("hf folder: a shard is a plain name in the folder (C1)") {
  const Model model;
  write_text(model.outer / "x.safetensors", f32("a", "secret!!"));
  fs::create_directory(model.folder / "sub");
  write_text(model.folder / "sub" / "x.safetensors", f32("a", "secret!!"));
  const std::string absolute = (model.outer / "x.safetensors").string();
  const OpenWatch outside(absolute), below(model.folder / "sub" / "x.safetensors");
  for (const std::string& value :
       {"../x.safetensors"s, absolute, "a/../../x.safetensors"s, "sub/../../x.safetensors"s,
        "sub/x.safetensors"s, "C:\\\\x"s, "C:x"s, ""s, "x\\u0000.safetensors"s, "."s, ".."s, "x\\n"s,
        "\\\\\\\\host\\\\x"s, std::string(300, 'x')}) {
    CAPTURE(value);
    model.index(index_text("\"a\":\"" + value + "\",\"b\":\"" + shard_b + "\""));
    const auto fields = model.refused(ErrorCode::path);
    CHECK(fields.file == model.index_path());
    CHECK(fields.key == "a");
    CHECK(fields.expected == "a file name without folders");
    CHECK(fields.found.front() == '"');
    model.refused(ErrorCode::path, {.allow_links = true});
  }
  CHECK_FALSE(outside.opened());
  CHECK_FALSE(below.opened());
}

TEST_CASE("hf folder: a linked shard may leave the folder only when links are allowed (C2)") {
  const Model model;
  fs::rename(model.folder / shard_a, model.outer / "blob");
  fs::create_symlink("../blob", model.folder / shard_a);
  const OpenWatch blob(model.outer / "blob");
  const auto fields = model.refused(ErrorCode::path);
  CHECK_FALSE(blob.opened());
  CHECK(fields.key == "a");
  CHECK(contains(fields.found, "../blob"));
  CHECK(content(HfFolder(model.folder, {.allow_links = true}), "a") == "aaaaaaaa");

  fs::remove(model.folder / shard_a);
  fs::rename(model.outer / "blob", model.folder / "blob");
  fs::create_symlink("blob", model.folder / shard_a);
  CHECK(content(HfFolder(model.folder), "a") == "aaaaaaaa");
}

TEST_CASE("hf folder: the index and the configuration are held to the same rule (P16)") {
  const Model model;
  for (const std::string& name : {index_name, "config.json"s}) {
    CAPTURE(name);
    fs::rename(model.folder / name, model.outer / name);
    fs::create_symlink("../" + name, model.folder / name);
    const OpenWatch outside(model.outer / name);
    row_refusal([&] { HfFolder(model.folder).config(); }, ErrorCode::path);
    CHECK_FALSE(outside.opened());
    CHECK(HfFolder(model.folder, {.allow_links = true}).config().size() == 2);
    fs::remove(model.folder / name);
    fs::rename(model.outer / name, model.folder / name);
  }
  fs::remove(model.folder / shard_a);
  REQUIRE(::mkfifo((model.folder / shard_a).c_str(), 0600) == 0);
  CHECK(model.refused(ErrorCode::path).key == "a");
  fs::remove(model.folder / shard_a);
  fs::create_symlink("/dev/zero", model.folder / shard_a);
  model.refused(ErrorCode::path);
  model.refused(ErrorCode::path, {.allow_links = true});
}

TEST_CASE("hf folder: shards that are not there (C3)") {
  const Model model;
  fs::remove(model.folder / shard_b);
  ErrorFields want{
      .file = model.index_path(), .key = "b", .expected = "a file " + shard_b, .found = "no such file"};
  check_fields(model.refused(ErrorCode::index), want);
  fs::create_directory(model.folder / shard_b);
  want.found = "a directory";
  check_fields(model.refused(ErrorCode::index), want);
}

TEST_CASE("hf folder: an index that contradicts the shards (C4, C5)") {
  const Model model;
  const auto refused = [&](const char* tensor, const std::string& expected, const std::string& found) {
    check_fields(model.refused(ErrorCode::index),
                 {.file = model.index_path(), .tensor = tensor, .expected = expected, .found = found});
  };
  SUBCASE("listed in one shard, stored in another") {
    write_text(model.folder / shard_a, safetensors("{" + entry("a", "F32", "[2]", "[0,8]") + "," +
                                                       entry("c", "F32", "[2]", "[8,16]") + "}",
                                                   "aaaaaaaacccccccc"));
    model.index(index_text(good_map + ",\"c\":\"" + shard_b + "\"", "24"));
    refused("c", shard_b, shard_a);
  }
  SUBCASE("listed, in no shard") {
    model.index(index_text(good_map + ",\"c\":\"" + shard_b + "\""));
    refused("c", shard_b, "in no shard");
  }
  SUBCASE("in two shards") {
    write_text(model.folder / shard_b, safetensors("{" + entry("a", "F32", "[2]", "[0,8]") + "," +
                                                       entry("b", "F32", "[2]", "[8,16]") + "}",
                                                   "aaaaaaaabbbbbbbb"));
    refused("a", "each tensor once", shard_a + " and " + shard_b);
  }
  SUBCASE("in a listed shard, not in the index") {
    write_text(model.folder / shard_b, safetensors("{" + entry("b", "F32", "[2]", "[0,8]") + "," +
                                                       entry("x", "F32", "[2]", "[8,16]") + "}",
                                                   "bbbbbbbbxxxxxxxx"));
    refused("x", "every tensor in the index", "only in " + shard_b);
  }
}

TEST_CASE("hf folder: a total that is wrong or no number (C6)") {
  const Model model;
  for (const std::string total : {"17", "0"}) {
    model.index(index_text(good_map, total));
    check_fields(model.refused(ErrorCode::index),
                 {.file = model.index_path(), .key = "total_size", .expected = "16", .found = total});
  }
  const std::pair<std::string, std::string> no_sizes[] = {{"-16", "-16"},
                                                          {"\"16\"", "16"},
                                                          {"16.5", "16.5"},
                                                          {"null", "no number"},
                                                          {"[16]", "no number"},
                                                          {"1e400", "1e400"},
                                                          {"18446744073709551632", "18446744073709551632"}};
  for (const auto& [total, found] : no_sizes) {
    CAPTURE(total);
    model.index(index_text(good_map, total));
    check_fields(model.refused(ErrorCode::index), {.file = model.index_path(),
                                                   .key = "total_size",
                                                   .offset = index_text("").find("16"),
                                                   .expected = "the number of bytes of all tensors",
                                                   .found = found});
  }
}

TEST_CASE("hf folder: an index that is no index (C7)") {
  const Model model;
  model.index(index_text(good_map + ",\"a\":\"" + shard_b + "\""));
  check_fields(model.refused(ErrorCode::dup),
               {.file = model.index_path(),
                .key = "a",
                .offset = index_text(good_map).size() - 1,
                .expected = "each key once",
                .found = fmt::format("the first at byte {}", index_text("").size() - 2)});

  model.index("{}");
  fs::resize_file(model.folder / index_name, 100'000'000);
  check_fields(model.refused(ErrorCode::limit), {.file = model.index_path(),
                                                 .offset = 67'108'864,
                                                 .expected = "at most 67108864 bytes",
                                                 .found = "100000000 bytes"});

  const struct {
    const char* text;
    std::uint64_t offset;
    const char *expected, *found;
  } texts[] = {{"", 0, "more of the value", "the end of the text"},
               {"[]", 0, "'{'", "["},
               {" \"text\"", 1, "'{'", "\""},
               {"3", 0, "'{'", "3"},
               {"{", 1, "more of the value", "the end of the text"},
               {"{}x", 2, "the end of the text after the value", "'x'"}};
  for (const auto& [text, offset, expected, found] : texts) {
    CAPTURE(text);
    model.index(text);
    check_fields(model.refused(ErrorCode::json),
                 {.file = model.index_path(), .offset = offset, .expected = expected, .found = found});
  }
  const struct {
    const char *text, *key;
    std::uint64_t offset;
    const char *expected, *found;
  } maps[] = {{"{}", "weight_map", 0, "weight_map", "no such key"},
              {R"({"weight_map":[]})", "weight_map", 1, "an object of file names", "no object"},
              {R"({"weight_map":{}})", "weight_map", 0, "at least one tensor in weight_map", "none"},
              {R"({"weight_map":{"a":1}})", "a", 19, "a file name", "no string"},
              {R"({"metadata":3,"weight_map":{"a":"x"}})", "metadata", 1, "an object", "no object"}};
  for (const auto& [text, key, offset, expected, found] : maps) {
    CAPTURE(text);
    model.index(text);
    check_fields(
        model.refused(ErrorCode::index),
        {.file = model.index_path(), .key = key, .offset = offset, .expected = expected, .found = found});
  }
}

TEST_CASE("hf folder: a single file beside an index of others is no guess of ours (C8)") {
  const Model model;
  write_text(model.folder / "model.safetensors", f32("a", "aaaaaaaa"));
  check_fields(model.refused(ErrorCode::index),
               {.file = model.index_path(),
                .expected = "one of the two",
                .found = (model.folder / "model.safetensors").string() + " and " + shard_a});
}

TEST_CASE("hf folder: a configuration that is none (C9)") {
  const Model model;
  const std::string path = (model.folder / "config.json").string();
  const auto refused = [&](ErrorCode code, std::uint64_t offset, const char* expected, const char* found) {
    check_fields(row_refusal([&] { HfFolder(model.folder).config(); }, code),
                 {.file = path, .offset = offset, .expected = expected, .found = found});
  };
  fs::remove(path);
  refused(ErrorCode::config, 0, "a JSON object", "no such file");
  const struct {
    const char* text;
    std::uint64_t offset;
    const char* found;
  } texts[] = {{"", 0, "an empty file"},   {" \n", 0, "an empty file"}, {"[]", 0, "array"},
               {"\"llama\"", 0, "string"}, {" 3", 1, "number"},         {"null", 0, "null"}};
  for (const auto& [text, offset, found] : texts) {
    CAPTURE(text);
    write_text(path, text);
    refused(ErrorCode::config, offset, "a JSON object", found);
  }
  fs::resize_file(path, 1'000'000'000);
  refused(ErrorCode::limit, 4'194'304, "at most 4194304 bytes", "1000000000 bytes");
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  write_text(path, deep);
  refused(ErrorCode::limit, 500, "at most 100 levels", "depth 101");
  write_text(path, R"({"a":1,})");
  refused(ErrorCode::json, 7, "a key in double quotes", "'}'");
  CHECK(HfFolder(model.folder).tensors().size() == 2);  // listing tensors asks nothing of it
}

TEST_CASE("hf folder: code of the repository is ignored and named (C13)") {
  const auto warnings = config_warnings(
      nlohmann::json::parse(R"({"auto_map":{"AutoModel":"evil.Model"},"model_type":"llama"})"));
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "auto_map"));
  CHECK(contains(warnings[0], "ignored"));
  CHECK(config_warnings(nlohmann::json::parse(R"({"model_type":"llama"})")).empty());
}

TEST_CASE("hf folder: folders of pickles and of other things are named, never read (F2)") {
  const TemporaryFolder outer;
  const std::pair<std::string, std::string> kinds[] = {{".metadata", "pickle refused"},
                                                       {"pytorch_model.bin", "pickle refused"},
                                                       {"pytorch_model.bin.index.json", "pickle refused"},
                                                       {"model.gguf", "GGUF"},
                                                       {"README.md", "no model"}};
  for (const auto& [name, found] : kinds) {
    CAPTURE(name);
    const fs::path folder = outer / ("with " + name);
    fs::create_directory(folder);
    write_text(folder / name, "cposix\nsystem\n");
    const auto fields = row_refusal([&] { HfFolder model(folder); }, ErrorCode::format);
    CHECK(fields.file == folder.string());
    CHECK(fields.expected == "model.safetensors or model.safetensors.index.json");
    CHECK(contains(fields.found, found));
  }
  check_fields(row_refusal([&] { HfFolder model(outer / "absent"); }, ErrorCode::path),
               {.file = (outer / "absent").string(), .expected = "a regular file", .found = "no file"});
}

TEST_CASE("hf folder: an index of 100,000 tensors is read within a second, and in linear time (P3)") {
  const TemporaryFolder outer;
  const auto open = [&](std::size_t count) {
    const fs::path folder = outer / std::to_string(count);
    fs::create_directory(folder);
    std::string map, header = "{";
    for (std::size_t i = 0; i < count; ++i) {
      const std::string name = "model.layers." + std::to_string(i) + ".weight";
      map += (i > 0 ? ",\"" : "\"") + name + "\":\"" + shard_a + "\"";
      header += (i > 0 ? "," : "") + entry(name, "F32", "[0]", "[0,0]");
    }
    write_text(folder / shard_a, safetensors(header + "}"));
    write_text(folder / index_name, index_text(map, "0"));
    return [=, bytes = map.size() + header.size()] {
      const testing::Cost cost;
      CHECK(HfFolder(folder).tensors().size() == count);
      CHECK(cost.bytes() <= static_cast<std::int64_t>(4 * bytes) + (64 << 20));
    };
  };
  check_linear(open(20'000), open(100'000));
}

TEST_CASE("hf folder: a checkpoint of 140 GB is listed in under a second") {
  // Sparse files: 30 shards of 4.7 GB, with as many tensors as a model of 80 layers has.
  const TemporaryFolder folder;
  std::string map;
  const std::uint64_t each = 200'000'000;
  std::uint64_t total = 0;
  for (int shard = 0; shard < 30; ++shard) {
    const std::string name = "model-" + std::to_string(shard) + ".safetensors";
    std::string header = "{";
    std::uint64_t end = 0;
    for (int i = 0; i < 24; ++i, end += each, total += each) {
      const std::string tensor = "model.layers." + std::to_string(shard) + ".weight." + std::to_string(i);
      header +=
          (i > 0 ? "," : "") + entry(tensor, "BF16", "[100000000]",
                                     "[" + std::to_string(end) + "," + std::to_string(end + each) + "]");
      map += (map.empty() ? "\"" : ",\"") + tensor + "\":\"" + name + "\"";
    }
    header += "}";
    write_text(folder / name, safetensors(header));
    fs::resize_file(folder / name, 8 + header.size() + end);
  }
  write_text(folder / index_name, index_text(map, std::to_string(total)));
  const auto begin = std::chrono::steady_clock::now();
  const HfFolder model(folder.path());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const std::uint64_t gigabytes = total / 1'000'000'000;
  MESSAGE(gigabytes << " GB, " << model.tensors().size() << " tensors: " << seconds.count() << " s");
  CHECK(total > 140'000'000'000);
  CHECK(model.tensors().size() == 720);
  CHECK(seconds.count() < 1.0);
}
