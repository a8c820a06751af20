#include <scalevec/edits/edit_file.h>

#include <sys/stat.h>

#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/sha256.h>
#include <scalevec/edits/base64.h>
#include <scalevec/edits/describe.h>
#include <scalevec/edits/workspace.h>

#include "support/errors.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "support/vectors.h"

using namespace scalevec;
using testing::error_of;
using testing::random_operation;
using testing::random_vectors;
using testing::TemporaryFolder;
using testing::Vectors;

namespace {

const EditSource source{"llama", "model.gguf"};

Edit sample(std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  const Vectors vectors = random_vectors(random, 2, 8, false);
  Workspace workspace = vectors.workspace();
  workspace.run(rescale("layers.{0..1}.attn.input_norm", 0.9));
  workspace.run(set("final_norm@1,3", std::vector{0.25, 1.5}));
  workspace.run(ablate("layers.1.*.input_norm@2:5", "mean"));
  return workspace.edit(source, "calmer \"second\" layer\n\x7F é");
}

// What somebody would write who changes a file and knows how the digest is made.
std::string sealed(std::string text) {
  const std::string line = "  \"digest\": \"";
  const std::size_t at = text.rfind(line);
  const std::string body = text.substr(0, at);
  return body + line + "sha256:" + sha256_hex(std::as_bytes(std::span(body.data(), body.size()))) + "\"\n}\n";
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE_MESSAGE(at != std::string::npos, from);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("base64: as RFC 4648 has it, and nothing else is read") {
  const auto bytes = [](std::string_view text) {
    const auto view = std::as_bytes(std::span(text.data(), text.size()));
    return std::vector<std::byte>(view.begin(), view.end());
  };
  for (const auto& [plain, text] : std::vector<std::pair<std::string, std::string>>{{"", ""},
                                                                                    {"f", "Zg=="},
                                                                                    {"fo", "Zm8="},
                                                                                    {"foo", "Zm9v"},
                                                                                    {"foob", "Zm9vYg=="},
                                                                                    {"fooba", "Zm9vYmE="},
                                                                                    {"foobar", "Zm9vYmFy"}}) {
    CHECK(base64_encode(bytes(plain)) == text);
    CHECK(base64_decode(text) == bytes(plain));
  }
  for (const char* bad :
       {"Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "=m9v", "Z===", "Zm9v\n", "Zm-v", "Zg ="}) {
    CAPTURE(bad);
    CHECK_FALSE(base64_decode(bad).has_value());
  }
}

TEST_CASE("edit files: read back as written, and the same edit is the same bytes") {
  std::mt19937_64 random(2);
  for (int round = 0; round < 100; ++round) {
    CAPTURE(round);
    const Vectors vectors = random_vectors(random, 2, 1 + static_cast<std::int64_t>(random() % 40), true);
    Workspace workspace = vectors.workspace();
    for (int i = 0; i < 6; ++i) {
      try {
        workspace.run(random_operation(random, vectors.sites, {.no_effect = true, .non_finite = true}));
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::value);
      }
    }
    const Edit edit = workspace.edit(source);
    const std::string text = edit_text(edit);
    CHECK(text == edit_text(workspace.edit(source)));
    const Edit back = parse_edit(text, "test");
    CHECK(edit_text(back) == text);
    CHECK(back.vectors == edit.vectors);
    Workspace again = vectors.workspace();
    again.replay(back);
    CHECK(edit_text(again.edit(source)) == text);
    CHECK(describe(back).find("layers") != std::string::npos);
  }
}

TEST_CASE("edit files: plain JSON, that another parser reads the same numbers from") {
  const Edit edit = sample();
  const nlohmann::json file = nlohmann::json::parse(edit_text(edit));
  CHECK(file["schema"] == "scalevec edit 1");
  CHECK(file["note"] == edit.note);
  CHECK(file["operations"][0]["factor"].get<double>() == 0.9);
  CHECK(file["operations"][2]["select"] == "layers.1.*.input_norm@2:5");
  REQUIRE(file["vectors"].size() == 4);
  CHECK(file["vectors"][0]["address"] == "final_norm");
  CHECK(file["vectors"][0]["channels"] == "1,3");
  CHECK(file["vectors"][2]["by"] == "1 3@2:5");
  for (const double value : {0.1, 1e-300, 5e-324, 1.7976931348623157e308, -0.0, 3.0, 1e22, 123456789.125}) {
    Edit one = edit;
    one.operations = {set("final_norm", value)};
    one.vectors.clear();
    const auto again = parse_edit(edit_text(one), "test");
    const double back = std::get<double>(again.operations[0].arguments.at("value"));
    CHECK(std::memcmp(&back, &value, sizeof value) == 0);
  }
}

TEST_CASE("edit files: at most 1.4 bytes for a touched byte and 0.5 KB for each vector") {
  std::mt19937_64 random(3);
  const auto check = [&](DType dtype, std::int64_t width, const Operation& operation, int layers,
                         std::size_t copies, double extra = 0.0) {
    const std::size_t size = scale_dtype_bytes(dtype);
    Vectors vectors;
    for (int i = 0; i < layers; ++i) {
      StoredVector vector{dtype, 0.0, std::vector<std::byte>(static_cast<std::size_t>(width) * size)};
      for (std::size_t c = 0; c < static_cast<std::size_t>(width); ++c) {
        encode(dtype, 1.0 + static_cast<double>(random() % 64) / 64.0,
               std::span(vector.bytes).subspan(c * size, size));
      }
      vectors.add("layers." + std::to_string(i) + ".post_attention_layernorm", vector);
      vectors.sites.back().native = "model.layers." + std::to_string(i) + ".post_attention_layernorm.weight";
    }
    Workspace workspace = vectors.workspace();
    workspace.run(operation);
    const Edit edit = workspace.edit(source);
    std::size_t touched = 0;
    for (const EditedVector& vector : edit.vectors) touched += vector.old.size();
    const std::size_t text = edit_text(edit).size();
    const double most = 1.4 * static_cast<double>(touched * copies) +
                        (512.0 + extra) * static_cast<double>(edit.vectors.size()) + 512.0;
    CAPTURE(operation.selector);
    CAPTURE(width);
    CAPTURE(edit.vectors.size());
    CAPTURE(touched);
    CHECK(static_cast<double>(text) <= most);
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    check(dtype, 576, ablate("layers.0.*@17"), 30, 1);
    check(dtype, 576, ablate("**@17"), 30, 1);
    check(dtype, 576, rescale("**", 0.9), 60, 1);
    check(dtype, 4096, ablate("**", "mean"), 32, 1);
    // bfloat16 loses half of these, in no order: one more bit for each channel, in base64.
    check(dtype, 8192, rescale("**", 1.003), 80, 1, dtype == DType::bf16 ? 8192.0 / 6 : 0.0);
    // Values for each channel are kept beside the old bytes.
    check(dtype, 4096, set("layers.0.*", std::vector<double>(4096, 0.3)), 1, 2);
    std::string scattered = "**@0";
    for (int c = 20; c < 576; c += 20) scattered += "," + std::to_string(c);
    check(dtype, 576, ablate(scattered), 30, 1);
  }
}

TEST_CASE("edit files: every change of one byte is found") {
  const std::string text = edit_text(sample());
  std::mt19937_64 random(4);
  for (std::size_t at = 0; at < text.size(); ++at) {
    for (int i = 0; i < 3; ++i) {
      std::string changed = text;
      changed[at] = static_cast<char>(changed[at] ^ static_cast<char>(1 + random() % 255));
      CAPTURE(at);
      const ErrorCode code = error_of([&] { parse_edit(changed, "test"); }).code;
      const bool known = code == ErrorCode::bundle || code == ErrorCode::json || code == ErrorCode::utf8 ||
                         code == ErrorCode::dup;
      CHECK_MESSAGE(known, std::string(code_name(code)));
    }
  }
  for (std::size_t size = 0; size < text.size(); ++size) {
    const ErrorCode code = error_of([&] { parse_edit(std::string_view(text).substr(0, size), "test"); }).code;
    const bool known = code == ErrorCode::json || code == ErrorCode::bundle || code == ErrorCode::utf8;
    CHECK(known);
  }
}

TEST_CASE(
    "edit files: damaged ones are refused with field and entry, also where the digest was made to fit") {
  const std::string text = edit_text(sample());
  struct Row {
    std::string from, to, key;
    std::optional<std::int64_t> index;
  };
  const std::string base = sample().vectors[0].base;
  std::string upper = base;
  upper.replace(7, 64, 64, 'A');
  const std::vector<Row> rows = {
      {"scalevec edit 1", "scalevec edit 2", "schema", {}},
      {"\"verb\": \"set\"", "\"verb\": \"swap\"", "operations[1]", 1},
      {"\"factor\": 0.9", "\"factor\": \"nan\"", "vectors[1].by", 1},
      {"\"factor\": 0.9", "\"factor\": \"0.9\"", "operations[0]", 0},
      {"\"factor\": 0.9", "\"factor\": 1e400", "vectors[1].by", 1},
      {"\"factor\": 0.9", "\"factor\": 0.9, \"power\": 2", "operations[0]", 0},
      {"\"factor\": 0.9", "\"factor\": true", "operations[0].factor", 0},
      {"\"selected\": 16", "\"selected\": -1", "operations[0].selected", 0},
      {"\"changed\": 16", "\"changed\": 17", "operations[0].changed", 0},
      {"\"changed\": 16", "\"changed\": 15.0", "operations[0].changed", 0},
      {"\"lost\": 0", "\"allow\": [\"all\"], \"lost\": 0", "operations[0].allow", 0},
      {"\"lost\": 0", "\"allow\": {}, \"lost\": 0", "operations[0].allow", 0},
      {"\"gathered\": {", "\"gathered\": [], \"x\": {", "operations[2].gathered", 2},
      {"\"tool\": ", "\"took\": ", "tool", {}},
      {"\"tool\": ", "\"extra\": 1, \"tool\": ", "extra", {}},
      {"\"address\": \"final_norm\"", "\"address\": \"../x\"", "vectors[0].address", 0},
      {"\"address\": \"final_norm\"", "\"address\": 7", "vectors[0].address", 0},
      {"\"address\": \"final_norm\"", "\"address\": \"layers.9.norm\"", "vectors[1].address", 1},
      {"\"address\": \"layers.1.attn.input_norm\"", "\"address\": \"layers.0.attn.input_norm\"",
       "vectors[2].address", 2},
      {"\"native\": ", "\"naive\": ", "vectors[0].native", 0},
      {"\"dtype\": \"", "\"dtype\": \"Q", "vectors[0].dtype", 0},
      {"\"offset\": ", "\"offset\": \"inf\", \"x\": ", "vectors[0].offset", 0},
      {"\"width\": 8", "\"width\": 0", "vectors[0].width", 0},
      {"\"width\": 8", "\"width\": 2", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"1,8\"", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"3,1\"", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"1,1\"", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"\"", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"bits:Cg==\"", "vectors[0].channels", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"1:4\"", "vectors[0].old", 0},
      {"\"channels\": \"1,3\"", "\"channels\": \"1,4\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"4\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"0\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"18446744073709551618\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"2@2\"", "vectors[0].by", 0},
      {"\"by\": \"2\"", "\"by\": \"2@1\"", "vectors[0].channels", 0},
      {"\"by\": \"2\"",
       "\"by\": \"1\"",
       "digest",
       {}},  // may be anything that the numbers allow, but not as saved
      {"\"old\": \"", "\"old\": \"AAAA", "vectors[0].old", 0},
      {"\"old\": \"", "\"old\": \"=", "vectors[0].old", 0},
      {base, base.substr(0, 70), "vectors[0].base", 0},
      {base, upper, "vectors[0].base", 0},
      {base, "sha512" + base.substr(6), "vectors[0].base", 0},
      {"\"values\": \"", "\"values\": \"AAAA", "vectors[0].by", 0},
      {"\"family\": \"llama\"", "\"family\": null", "family", {}},
      {"\"note\": ", "\"note\": \"\", \"x\": ", "x", {}},
      {"  \"vectors\": [", "  \"vectors\":  [", "layout", {}},
      {"\"factor\": 0.9", "\"factor\": 0.90", "layout", {}},
      {"\"factor\": 0.9", "\"factor\": 9e-1", "layout", {}},
      {"\"factor\": 0.9, \"selected\": 16", "\"selected\": 16, \"factor\": 0.9", "layout", {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.from);
    CAPTURE(row.to);
    std::string changed = replaced(text, row.from, row.to);
    // A digest over another layout than ours is no digest at all; over the canonical one it must not help.
    if (row.key != "digest") changed = sealed(changed);
    const auto error = error_of([&] { parse_edit(changed, "e.sv.json"); });
    CHECK(error.code == ErrorCode::bundle);
    CHECK(error.fields.file == "e.sv.json");
    const bool by_digest = error.fields.key == "digest";
    // Where the text is not canonical, its digest cannot be made to fit either.
    if (!by_digest || row.key == "digest") {
      CHECK(error.fields.key == row.key);
      CHECK(error.fields.index == row.index);
    } else {
      CHECK((row.key == "layout" || row.key.find("by") != std::string::npos));
    }
  }
}

TEST_CASE("edit files: what is no JSON, says a key twice, or is too large") {
  const std::string text = edit_text(sample());
  const auto code = [](const std::string& changed) {
    return error_of([&] { parse_edit(changed, "test"); }).code;
  };
  CHECK(code("") == ErrorCode::json);
  CHECK(code("[]") == ErrorCode::bundle);
  CHECK(code(text + "{}") == ErrorCode::json);
  CHECK(code(replaced(text, "0.9", "NaN")) == ErrorCode::json);
  CHECK(code(replaced(text, "\"factor\": 0.9", "\"factor\": 0.9, \"factor\": 0.9")) == ErrorCode::dup);
  CHECK(code(replaced(text, "\"tool\"", "\"schema\": \"scalevec edit 1\", \"tool\"")) == ErrorCode::dup);
  CHECK(code(std::string(1 << 20, '[')) == ErrorCode::limit);
  std::string many = "{\"operations\": [0";
  for (int i = 0; i < 10'000'000; ++i) many += ",0";
  CHECK(code(many + "]}") == ErrorCode::limit);

  const TemporaryFolder folder;
  { std::ofstream(folder / "large.sv.json"); }
  std::filesystem::resize_file(folder / "large.sv.json", std::uintmax_t{1} << 40);
  CHECK(error_of([&] { read_edit(folder / "large.sv.json"); }).code == ErrorCode::limit);
  REQUIRE(::mkfifo((folder / "fifo.sv.json").c_str(), 0600) == 0);
  CHECK(error_of([&] { read_edit(folder / "fifo.sv.json"); }).code == ErrorCode::path);
  CHECK(error_of([&] { read_edit(folder / "absent.sv.json"); }).code == ErrorCode::path);

  Edit edit = sample();
  edit.note = "\xFF";
  CHECK(error_of([&] { edit_text(edit); }).code == ErrorCode::utf8);
  edit.operations.assign(50'001, edit.operations[0]);
  CHECK(error_of([&] { edit_text(edit); }).code == ErrorCode::limit);
}

TEST_CASE("edit files: an existing one is replaced only where that is asked for") {
  const TemporaryFolder folder;
  const Edit first = sample(1), second = sample(2);
  write_edit(first, folder / "e.sv.json");
  CHECK(error_of([&] { write_edit(second, folder / "e.sv.json"); }).code == ErrorCode::path);
  CHECK(edit_text(read_edit(folder / "e.sv.json")) == edit_text(first));
  write_edit(second, folder / "e.sv.json", Replace::files);
  CHECK(edit_text(read_edit(folder / "e.sv.json")) == edit_text(second));
  CHECK(testing::snapshot(folder.path()).size() == 1);
}

TEST_CASE("describe: operations with counts, both names, values before and after") {
  const Edit edit = sample();
  const std::string text = describe(edit);
  for (const char* part :
       {"model.gguf", "rescale by 0.9", "layers.{0..1}.attn.input_norm", "16 channels selected, 16 changed",
        "ablate to mean", "set channel by channel", "native.final_norm", "-> 0.25", "-> 1.5"}) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, part);
  }
  CHECK(describe(edit, true).find("native.") == std::string::npos);
}
