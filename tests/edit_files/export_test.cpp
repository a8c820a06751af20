#include <scalevec/edits/export.h>

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/sha256.h>
#include <scalevec/edits/edit_file.h>
#include <scalevec/edits/file_workspace.h>

#include "support/errors.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"
#include "support/vectors.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::error_of;
using testing::random_operation;
using testing::snapshot;
using testing::TemporaryFolder;
using testing::TinyOptions;
using testing::TinyTensor;

namespace {

enum class Kind { gguf, file, folder, shards };

fs::path write_model(const fs::path& place, Kind kind, std::mt19937_64& random, TinyOptions options,
                     std::vector<TinyTensor>* tensors = nullptr) {
  options.gguf = kind == Kind::gguf;
  const std::vector<TinyTensor> made = testing::tiny_llama(random, options);
  if (tensors != nullptr) *tensors = made;
  if (kind == Kind::gguf) {
    testing::write_gguf(place.string() + ".gguf", made, options);
    return place.string() + ".gguf";
  }
  testing::write_folder(place, made, options, kind == Kind::shards ? 3 : 1);
  return kind == Kind::file ? place / "model.safetensors" : place;
}

TinyOptions random_options(std::mt19937_64& random) {
  return {.layers = 1 + static_cast<int>(random() % 3),
          .width = 4 * (1 + static_cast<int>(random() % 4)),
          .matrix_dtype = random() % 2 == 0 ? "BF16" : "F32",
          .vector_dtypes = {"F32", "F64", "F16", "BF16"},
          .strange = true};
}

constexpr Allow any{.no_effect = true, .non_finite = true};

Edit random_edit(const Checkpoint& checkpoint, std::mt19937_64& random, int operations) {
  Workspace workspace = file_workspace(checkpoint);
  for (int i = 0; i < operations; ++i) {
    try {
      workspace.run(random_operation(random, checkpoint.sites(), any));
    } catch (const Error& error) {
      REQUIRE(error.code() == ErrorCode::value);  // beyond what float16 holds
    }
  }
  return workspace.edit(source_of(checkpoint));
}

// Bytes that may differ: found from what the writer put there, not from what the library reads.
void check_only_edited_bytes_differ(const std::map<std::string, std::string>& before,
                                    const std::map<std::string, std::string>& after, const Edit& edit,
                                    const std::vector<TinyTensor>& tensors, std::uint64_t changed) {
  std::string place_before, place_after;
  std::uint64_t differing = 0;
  REQUIRE(before.size() == after.size());
  std::set<std::pair<std::string, std::size_t>> allowed;
  for (const EditedVector& vector : edit.vectors) {
    const auto tensor = std::find_if(tensors.begin(), tensors.end(),
                                     [&](const TinyTensor& t) { return t.name == vector.native; });
    REQUIRE(tensor != tensors.end());
    for (const auto& [name, text] : before) {
      for (std::size_t at = text.find(tensor->bytes); at != std::string::npos;
           at = text.find(tensor->bytes, at + 1)) {
        const std::size_t size = testing::dtype_size(tensor->dtype);
        for (const std::int64_t channel : vector.channels) {
          for (std::size_t i = 0; i < size; ++i)
            allowed.insert({name, at + static_cast<std::size_t>(channel) * size + i});
        }
      }
    }
  }
  for (const auto& [name, text] : before) {
    const std::string& other = after.at(name);
    REQUIRE(text.size() == other.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] == other[i]) continue;
      ++differing;
      if (!allowed.contains({name, i})) FAIL("byte ", i, " of '", name, "' differs");
    }
  }
  CHECK(differing == changed);
}

fs::path destination_for(Kind kind, const fs::path& place) {
  switch (kind) {
    case Kind::gguf:
      return place.string() + ".gguf";
    case Kind::file:
      return place.string() + "/";
    default:
      return place;
  }
}

double cpu_seconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

fs::path opened(Kind kind, const fs::path& destination) {
  return kind == Kind::file ? destination / "model.safetensors" : destination;
}

}  // namespace

TEST_CASE("export changes the edited bytes and no other; revert gives back the same files") {
  std::mt19937_64 random(1);
  const TemporaryFolder folder;
  for (int round = 0; round < 500; ++round) {
    CAPTURE(round);
    for (const Kind kind : {Kind::gguf, Kind::file, Kind::folder, Kind::shards}) {
      if (kind == Kind::file && round % 4 != 0) continue;
      std::vector<TinyTensor> tensors;
      const fs::path model = write_model(folder / "model", kind, random, random_options(random), &tensors);
      const auto before = snapshot(model);
      Checkpoint checkpoint = Checkpoint::open(model);
      const int operations = round % 25 == 0 ? 200 : 1 + static_cast<int>(random() % 8);
      // Through its file, so that what was saved is what is exported.
      const Edit edit = parse_edit(edit_text(random_edit(checkpoint, random, operations)), "test");
      const fs::path exported = destination_for(kind, folder / "exported");
      const ExportReport report = export_edited(checkpoint, edit, exported);
      CHECK(report.vectors == edit.vectors.size());
      CHECK(snapshot(model) == before);
      check_only_edited_bytes_differ(before, snapshot(opened(kind, exported)), edit, tensors,
                                     report.bytes_changed);

      Checkpoint edited = Checkpoint::open(opened(kind, exported));
      for (const EditedVector& vector : edit.vectors) {
        for (const Site& site : edited.sites()) {
          if (site.address.str() == vector.address) CHECK(edited.digest(site) == vector.after);
        }
      }
      const fs::path reverted = destination_for(kind, folder / "reverted");
      CHECK(revert_export(edited, edit, reverted).bytes_changed == report.bytes_changed);
      CHECK(snapshot(opened(kind, reverted)) == before);
      for (const fs::directory_entry& entry : fs::directory_iterator(folder.path()))
        fs::remove_all(entry.path());
    }
  }
}

TEST_CASE("1,000 chains of 20 exports revert one by one to the same files") {
  std::mt19937_64 random(2);
  for (int round = 0; round < 1000; ++round) {
    CAPTURE(round);
    const TemporaryFolder folder;
    const Kind kind = round % 5 == 0 ? Kind::shards : Kind::gguf;
    std::vector<fs::path> models = {write_model(folder / "0", kind, random, random_options(random))};
    std::vector<Edit> edits;
    for (int i = 1; i <= 20; ++i) {
      const Checkpoint checkpoint = Checkpoint::open(models.back());
      edits.push_back(random_edit(checkpoint, random, 1));
      models.push_back(destination_for(kind, folder / std::to_string(i)));
      export_edited(checkpoint, edits.back(), models.back());
    }
    fs::path current = models.back();
    for (std::size_t i = 20; i-- > 0;) {
      const fs::path next = destination_for(kind, folder / ("back-" + std::to_string(i)));
      revert_export(Checkpoint::open(current), edits[i], next);
      if (snapshot(next) != snapshot(models[i])) FAIL("step ", i, " does not come back");
      current = next;
    }
    CHECK(snapshot(current) == snapshot(models[0]));
  }
}

TEST_CASE("export: another base, a second time, a revert of what was not exported") {
  std::mt19937_64 random(3);
  const TemporaryFolder folder;
  for (const Kind kind : {Kind::gguf, Kind::shards}) {
    const fs::path model = write_model(folder / (kind == Kind::gguf ? "a" : "b"), kind, random, {});
    const Checkpoint checkpoint = Checkpoint::open(model);
    Workspace workspace = file_workspace(checkpoint);
    workspace.run(set("final_norm@2", 7.0));
    const Edit edit = workspace.edit(source_of(checkpoint));
    CHECK(edit.source.family == "llama");
    CHECK(edit.source.file == model.filename());
    const fs::path exported = destination_for(kind, folder / "exported");
    export_edited(checkpoint, edit, exported);
    const auto made = snapshot(folder.path());

    CHECK(error_of([&] { export_edited(Checkpoint::open(exported), edit, folder / "x"); }).code ==
          ErrorCode::state);
    CHECK(error_of([&] { revert_export(checkpoint, edit, folder / "x"); }).code == ErrorCode::state);
    const fs::path other = write_model(folder / "other", kind, random, {});
    const auto error = error_of([&] { export_edited(Checkpoint::open(other), edit, folder / "x"); });
    CHECK(error.code == ErrorCode::bundle);
    CHECK(error.fields.tensor == "final_norm");
    CHECK(error_of([&] { revert_export(Checkpoint::open(other), edit, folder / "x"); }).code ==
          ErrorCode::bundle);
    CHECK_FALSE(fs::exists(folder / "x"));
    fs::remove_all(other);
    CHECK(snapshot(folder.path()) == made);
    fs::remove_all(exported);
  }
}

TEST_CASE("export refuses destinations that are taken, the source, a link to it, or inside it") {
  std::mt19937_64 random(4);
  const TemporaryFolder folder;
  const fs::path gguf = write_model(folder / "m", Kind::gguf, random, {});
  const fs::path shards = write_model(folder / "shards", Kind::shards, random, {});
  fs::create_hard_link(gguf, folder / "hard.gguf");
  fs::create_symlink(gguf, folder / "soft.gguf");
  fs::create_symlink(shards, folder / "soft");
  fs::create_symlink(folder / "nowhere", folder / "dangling");
  testing::write_text(folder / "taken", "x");
  fs::create_directory(folder / "full");
  testing::write_text(folder / "full" / "x", "x");
  const auto before = snapshot(folder.path());
  for (const fs::path& model : {gguf, shards}) {
    const Checkpoint checkpoint = Checkpoint::open(model);
    Workspace workspace = file_workspace(checkpoint);
    workspace.run(rescale("**", 2.0));
    const Edit edit = workspace.edit(source_of(checkpoint));
    for (const fs::path& bad :
         {gguf, shards, folder / "hard.gguf", folder / "soft.gguf", folder / "soft", folder / "dangling",
          folder / "taken", folder / "full", folder / "full/", folder / "absent" / "x", fs::path(""),
          shards / "model-00001-of-00003.safetensors"}) {
      CAPTURE(bad);
      CHECK(error_of([&] { export_edited(checkpoint, edit, bad); }).code == ErrorCode::path);
    }
    if (model == shards) {
      for (const fs::path& bad : {shards / "out", shards / "extra" / "out", folder / "soft" / "out",
                                  shards / "extra" / ".." / "out"}) {
        CAPTURE(bad);
        const auto error = error_of([&] { export_edited(checkpoint, edit, bad); });
        CHECK(error.code == ErrorCode::path);
        CHECK(error.fields.found == "inside the source folder");
      }
    }
    CHECK(snapshot(folder.path()) == before);
  }
}

TEST_CASE("export into an empty folder, with a trailing slash, and over an empty file") {
  std::mt19937_64 random(5);
  const TemporaryFolder folder;
  const fs::path model = write_model(folder / "m", Kind::gguf, random, {});
  const Checkpoint checkpoint = Checkpoint::open(model);
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(rescale("**", 2.0));
  const Edit edit = workspace.edit(source_of(checkpoint));
  fs::create_directory(folder / "empty");
  testing::write_text(folder / "file", "");
  export_edited(checkpoint, edit, folder / "empty");
  export_edited(checkpoint, edit, folder / "new/");
  export_edited(checkpoint, edit, folder / "file");
  CHECK(snapshot(folder / "empty").begin()->first == "m.gguf");
  CHECK(snapshot(folder / "new").begin()->first == "m.gguf");
  CHECK(testing::read_text(folder / "file") == testing::read_text(folder / "new" / "m.gguf"));
}

TEST_CASE(
    "export: links within the folder become files, links out of it are refused, other weights are named") {
  std::mt19937_64 random(6);
  const TemporaryFolder folder;
  const fs::path model = write_model(folder / "m", Kind::shards, random, {});
  fs::create_directory(model / ".git");
  testing::write_text(model / ".git" / "HEAD", "x");
  testing::write_text(model / "pytorch_model.bin", "weights");
  fs::create_symlink("tokenizer.json", model / "vocab.json");
  const Checkpoint checkpoint = Checkpoint::open(model);
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(rescale("**", 2.0));
  const Edit edit = workspace.edit(source_of(checkpoint));
  const ExportReport report = export_edited(checkpoint, edit, folder / "out");
  CHECK(report.files == 9);
  REQUIRE(report.warnings.size() == 1);
  CHECK(report.warnings[0].find("pytorch_model.bin") != std::string::npos);
  const auto made = snapshot(folder / "out");
  CHECK(made.size() == 9);
  CHECK(made.contains("extra/notes.txt"));
  CHECK_FALSE(fs::is_symlink(folder / "out" / "vocab.json"));
  CHECK(made.at("vocab.json") == "{\"a\": 1}");
  std::uint64_t bytes = 0;
  for (const auto& [name, text] : made) bytes += text.size();
  CHECK(report.bytes == bytes);

  testing::write_text(folder / "secret", "not the model's");
  fs::create_symlink(folder / "secret", model / "notes.txt");
  CHECK(error_of([&] { export_edited(checkpoint, edit, folder / "again"); }).code == ErrorCode::path);
  fs::remove(model / "notes.txt");
  REQUIRE(::mkfifo((model / "pipe").c_str(), 0600) == 0);
  CHECK(error_of([&] { export_edited(checkpoint, edit, folder / "again"); }).code == ErrorCode::path);
  CHECK_FALSE(fs::exists(folder / "again"));
}

TEST_CASE("export: nothing from elsewhere is copied, whatever is swapped for a link meanwhile") {
  std::mt19937_64 random(8);
  const TemporaryFolder folder;
  const fs::path model = write_model(folder / "m", Kind::folder, random, {});
  fs::create_directory(model / "inner");
  testing::write_text(model / "inner/notes.txt", "the model's");
  fs::create_directory(folder / "elsewhere");
  testing::write_text(folder / "elsewhere/notes.txt", "not the model's");
  testing::write_text(model / "a.txt", "the model's");
  const Checkpoint checkpoint = Checkpoint::open(model);
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(rescale("**", 2.0));
  const Edit edit = workspace.edit(source_of(checkpoint));

  // Each is in turn what it was and a link out of the folder, many times in the span of one export.
  std::atomic<bool> stop{false};
  const auto swap = [&](const fs::path& path, const fs::path& other) {
    const fs::path link = path.string() + ".scalevec-tmp", aside = folder / (path.stem().string() + ".aside");
    while (!stop) {
      fs::create_symlink(other, link);
      fs::rename(path, aside);
      fs::rename(link, path);
      fs::remove(path);
      fs::rename(aside, path);
    }
  };
  std::thread file([&] { swap(model / "a.txt", folder / "elsewhere/notes.txt"); });
  std::thread inner([&] { swap(model / "inner", folder / "elsewhere"); });
  int made = 0, refused = 0;
  for (int i = 0; i < 1000; ++i) {
    try {
      export_edited(checkpoint, edit, folder / "out");
      ++made;
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::path);
      ++refused;
    }
    for (const auto& [name, text] : snapshot(folder / "out")) {
      if (text == "not the model's") FAIL("'", name, "' came from elsewhere");
    }
    fs::remove_all(folder / "out");
  }
  stop = true;
  file.join();
  inner.join();
  MESSAGE(made, " copies, ", refused, " refused");
  CHECK(made + refused == 1000);
  CHECK(refused > 0);
}

TEST_CASE("export: a hub cache, whose files are links out of the folder") {
  std::mt19937_64 random(7);
  const TemporaryFolder folder;
  const fs::path model = write_model(folder / "m", Kind::shards, random, {});
  const auto before = snapshot(model);
  fs::create_directory(folder / "blobs");
  int number = 0;
  for (const auto& [name, text] : before) {
    if (name.find('/') != std::string::npos) continue;
    const fs::path blob = folder / "blobs" / std::to_string(number++);
    fs::rename(model / name, blob);
    fs::create_symlink(blob, model / name);
  }
  const Checkpoint checkpoint = Checkpoint::open(model, {.allow_links = true});
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(rescale("**", 2.0));
  const Edit edit = workspace.edit(source_of(checkpoint));
  export_edited(checkpoint, edit, folder / "out");
  for (const fs::directory_entry& entry : fs::directory_iterator(folder / "out"))
    CHECK_FALSE(entry.is_symlink());
  revert_export(Checkpoint::open(folder / "out"), edit, folder / "back");
  CHECK(snapshot(folder / "back") == before);
}

TEST_CASE("export: a source that changes after it was opened is E_STATE or E_IO, and nothing is made") {
  std::mt19937_64 random(8);
  for (int change = 0; change < 3; ++change) {
    CAPTURE(change);
    const TemporaryFolder folder;
    const fs::path model = write_model(folder / "m", Kind::gguf, random, {});
    const Checkpoint checkpoint = Checkpoint::open(model);
    Workspace workspace = file_workspace(checkpoint);
    workspace.run(rescale("**", 2.0));
    const Edit edit = workspace.edit(source_of(checkpoint));
    bool changed = false;
    const Progress during_copy = [&](std::string_view, std::uint64_t, std::uint64_t) {
      if (std::exchange(changed, true)) return;
      const std::string text = testing::read_text(model);
      if (change == 0) testing::write_text(model, std::string(text.size(), 'x'));
      if (change == 1) fs::resize_file(model, text.size() - 1);
      if (change == 2) {
        testing::write_text(folder / "new", text);
        fs::rename(folder / "new", model);
      }
    };
    const ErrorCode code =
        error_of([&] { export_edited(checkpoint, edit, folder / "out", during_copy); }).code;
    CHECK(changed);
    CHECK((code == ErrorCode::state || code == ErrorCode::io));
    CHECK(snapshot(folder.path()).size() == 1);
  }
}

TEST_CASE("export: an exception from progress stops it, and nothing is left") {
  std::mt19937_64 random(9);
  const TemporaryFolder folder;
  const fs::path model = write_model(folder / "m", Kind::shards, random, {});
  const Checkpoint checkpoint = Checkpoint::open(model);
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(rescale("**", 2.0));
  const Edit edit = workspace.edit(source_of(checkpoint));
  std::uint64_t last = 0, total = 0;
  export_edited(checkpoint, edit, folder / "whole",
                [&](std::string_view, std::uint64_t done, std::uint64_t all) {
                  CHECK(done > last);
                  last = done;
                  total = all;
                });
  CHECK(last == total);
  const Progress stop = [](std::string_view, std::uint64_t, std::uint64_t) {
    throw std::runtime_error("stop");
  };
  CHECK_THROWS_WITH(export_edited(checkpoint, edit, folder / "out", stop), "stop");
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 2);
}

TEST_CASE("a large sharded model is exported at the cost of its edited vectors and of copying") {
  std::mt19937_64 random(12);
  const TemporaryFolder folder;
  // 140 GB that are holes: whoever hashed or read them would be seen.
  TinyOptions options;
  const fs::path model = write_model(folder / "m", Kind::shards, random, options);
  std::vector<TinyTensor> none;
  const std::uint64_t huge = std::uint64_t{140} << 30;
  const std::string name = "model-00001-of-00003.safetensors";
  std::string text = testing::read_text(model / name);
  std::uint64_t header_size = 0;
  std::memcpy(&header_size, text.data(), 8);
  std::string header = text.substr(8, header_size);
  const std::uint64_t data = text.size() - 8 - header_size;
  header.erase(header.rfind('}'));
  header += ", \"model.layers.0.self_attn.rotary_emb.inv_freq\": {\"dtype\": \"U8\", \"shape\": [" +
            std::to_string(huge) + "], \"data_offsets\": [" + std::to_string(data) + "," +
            std::to_string(data + huge) + "]}}";
  header_size = header.size();
  std::string start(8, '\0');
  std::memcpy(start.data(), &header_size, 8);
  testing::write_text(model / name, start + header + text.substr(text.size() - data));
  fs::resize_file(model / name, 8 + header.size() + data + huge);
  std::string index = testing::read_text(model / "model.safetensors.index.json");
  const std::string key = "\"weight_map\": {";
  index.insert(index.find(key) + key.size(),
               "\"model.layers.0.self_attn.rotary_emb.inv_freq\": \"" + name + "\", ");
  const std::size_t total = index.find("total_size\": ") + 13;
  const std::uint64_t old_total = std::stoull(index.substr(total));
  index.replace(total, std::to_string(old_total).size(), std::to_string(old_total + huge));
  testing::write_text(model / "model.safetensors.index.json", index);

  rusage usage_before{}, usage_after{};
  ::getrusage(RUSAGE_SELF, &usage_before);
  const Checkpoint checkpoint = Checkpoint::open(model);
  Workspace workspace = file_workspace(checkpoint);
  workspace.run(ablate("final_norm@3"));
  const Edit edit = workspace.edit(source_of(checkpoint));
  export_edited(checkpoint, edit, folder / "out");
  revert_export(Checkpoint::open(folder / "out"), edit, folder / "back");
  ::getrusage(RUSAGE_SELF, &usage_after);
  CHECK(cpu_seconds(usage_after) - cpu_seconds(usage_before) < 10.0);
  CHECK(usage_after.ru_maxrss - usage_before.ru_maxrss < 64 * 1024);
  CHECK(fs::file_size(folder / "back" / name) == fs::file_size(model / name));
  struct stat status {};
  REQUIRE(::stat((folder / "out" / name).c_str(), &status) == 0);
  CHECK(status.st_blocks < 1 << 20);
}
