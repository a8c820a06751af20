// Every write path, with every call that writes failing, killed, or torn: the destination is absent (or the
// old file) or whole, the base is as it was, and the next writer removes what is left.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/edits/edit_file.h>
#include <scalevec/edits/export.h>
#include <scalevec/edits/file_workspace.h>

#include "faults/disk.h"
#include "faults/system_calls.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::Disk;
using testing::Fault;
using testing::snapshot;
using testing::TemporaryFolder;

namespace {

using Snapshot = std::map<std::string, std::string>;

// One thing that writes: what it needs is made once, then it runs again and again.
struct Path {
  std::string name;
  fs::path destination;
  std::function<void()> write;
  Snapshot old;  // what stands there before: nothing, or a file that is replaced
};

struct World {
  TemporaryFolder folder;
  fs::path gguf, file, shards;
  std::vector<Path> paths;

  World() {
    fs::create_directory(folder / "base");
    fs::create_directory(folder / "out");
    std::mt19937_64 random(1);
    testing::TinyOptions options;
    gguf = folder / "base" / "m.gguf";
    options.gguf = true;
    testing::write_gguf(gguf, testing::tiny_llama(random, options), options);
    options.gguf = false;
    file = folder / "base" / "file";
    testing::write_folder(file, testing::tiny_llama(random, options), options, 1);
    shards = folder / "base" / "shards";
    testing::write_folder(shards, testing::tiny_llama(random, options), options, 3);

    const auto edit_of = [](const fs::path& model) {
      const Checkpoint checkpoint = Checkpoint::open(model);
      Workspace workspace = file_workspace(checkpoint);
      workspace.run(set("final_norm@1,3", 2.5));
      workspace.run(ablate("layers.1.*.input_norm@2"));
      return workspace.edit(source_of(checkpoint));
    };
    const auto add_export = [&](const std::string& name, const fs::path& model, const fs::path& destination) {
      paths.push_back(
          {name,
           destination,
           [=, edit = edit_of(model)] { export_edited(Checkpoint::open(model), edit, destination); },
           {}});
    };
    add_export("export of a GGUF file", gguf, folder / "out" / "x.gguf");
    add_export("export of a safetensors file", file / "model.safetensors", folder / "out" / "x.safetensors");
    add_export("export of a safetensors file into a folder", file / "model.safetensors",
               folder / "out" / "one/");
    add_export("export of a folder with shards", shards, folder / "out" / "shards");

    const fs::path exported = folder / "base" / "exported.gguf";
    export_edited(Checkpoint::open(gguf), edit_of(gguf), exported);
    const fs::path reverted = folder / "out" / "back.gguf";
    paths.push_back({"revert",
                     reverted,
                     [=, edit = edit_of(gguf)] { revert_export(Checkpoint::open(exported), edit, reverted); },
                     {}});
    const fs::path saved = folder / "out" / "e.sv.json";
    paths.push_back({"edit file", saved, [=, edit = edit_of(gguf)] { write_edit(edit, saved); }, {}});
    paths.push_back({"edit file over an old one",
                     saved,
                     [=, edit = edit_of(gguf)] { write_edit(edit, saved, Replace::files); },
                     {{"", "the old one"}}});
  }

  void prepare(const Path& path) const {
    fs::remove_all(folder / "out");
    fs::create_directory(folder / "out");
    if (!path.old.empty()) testing::write_text(path.destination, path.old.at(""));
  }
};

// Runs it in a process of its own, so that it can die. True if the call number `fault.at` came.
struct Outcome {
  bool reached = false, finished = false;
};
Outcome run(const Path& path, const Fault& fault) {
  int channel[2];
  REQUIRE(::pipe(channel) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int status = 0;
    testing::calls = 0;
    testing::fault = fault;
    testing::fault.enabled = true;
    try {
      path.write();
    } catch (const Error& error) {
      status = error.code() == ErrorCode::io || error.code() == ErrorCode::path ? 1 : 2;
    } catch (...) {
      status = 2;
    }
    ::_exit(status + (testing::calls >= fault.at ? 10 : 0));
  }
  ::close(channel[0]);
  ::close(channel[1]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE_MESSAGE(WIFEXITED(status), "the process crashed");
  const int code = WEXITSTATUS(status);
  if (code == testing::killed_status) return {true, false};
  CHECK_MESSAGE(code % 10 != 2, "an exception that is no E_IO and no E_PATH");
  return {code >= 10, code % 10 == 0};
}

Snapshot whole_of(const World& world, const Path& path) {
  world.prepare(path);
  path.write();
  return snapshot(path.destination);
}

}  // namespace

TEST_CASE("every write path, with every call failing, killed, or torn") {
  const World world;
  const Snapshot base = snapshot(world.folder / "base");
  std::uint64_t points = 0;
  for (const Path& path : world.paths) {
    CAPTURE(path.name);
    const Snapshot whole = whole_of(world, path);
    REQUIRE_FALSE(whole.empty());
    for (const auto& [kind, error, lasting] :
         std::vector<std::tuple<Fault::Kind, int, bool>>{{Fault::Kind::fail, ENOSPC, false},
                                                         {Fault::Kind::fail, ENOSPC, true},
                                                         {Fault::Kind::fail, EIO, false},
                                                         {Fault::Kind::fail, EIO, true},
                                                         {Fault::Kind::fail, EACCES, false},
                                                         {Fault::Kind::fail, EDQUOT, true},
                                                         {Fault::Kind::half_fail, ENOSPC, true},
                                                         {Fault::Kind::half_fail, EIO, false},
                                                         {Fault::Kind::half_fail, EDQUOT, true},
                                                         {Fault::Kind::fail, EDQUOT, false},
                                                         {Fault::Kind::fail, EPERM, false},
                                                         {Fault::Kind::fail, EROFS, true},
                                                         {Fault::Kind::fail, ENOMEM, false},
                                                         {Fault::Kind::kill, 0, false},
                                                         {Fault::Kind::half, 0, false}}) {
      bool reached = true;
      for (std::uint64_t at = 1; reached; ++at) {
        CAPTURE(at);
        CAPTURE(static_cast<int>(kind));
        CAPTURE(error);
        world.prepare(path);
        const Outcome outcome = run(path, {.kind = kind, .error = error, .lasting = lasting, .at = at});
        reached = outcome.reached;
        points += reached;
        const Snapshot now = snapshot(path.destination);
        const bool is_whole = now == whole, is_old = now == path.old;
        CHECK_MESSAGE((is_whole || is_old), "the destination is neither the old one nor the whole new one");
        if (outcome.finished) CHECK(is_whole);  // success is never claimed for what is not there
        if (is_old && path.old.empty()) CHECK_FALSE(fs::exists(path.destination));
        // The next writer clears what a dead one left.
        clean_leftovers(world.folder / "out");
        for (const fs::directory_entry& entry : fs::directory_iterator(world.folder / "out")) {
          CHECK_MESSAGE(
              entry.path().filename() ==
                  (path.destination.has_filename() ? path.destination : path.destination.parent_path())
                      .filename(),
              "left: ", entry.path().string());
        }
        if (is_old) {
          path.write();
          CHECK(snapshot(path.destination) == whole);
        }
      }
    }
  }
  CHECK(snapshot(world.folder / "base") == base);
  MESSAGE("points: ", points);
  CHECK(points >= 2000);
}

namespace {

// What a power cut left under `destination`.
Snapshot at(const Disk::Tree& tree, const fs::path& destination) {
  Snapshot out;
  const std::string name = destination.filename().string();
  for (const auto& [path, bytes] : tree) {
    if (path == name && bytes) out[""] = *bytes;
    if (path.starts_with(name + "/") && bytes) out[path.substr(name.size() + 1)] = *bytes;
  }
  // An empty folder is there in place of what was to be.
  if (out.empty() && tree.contains(name)) out["?"] = "";
  return out;
}

}  // namespace

TEST_CASE(
    "after a power cut the destination is absent, old, or whole: unsynced writes dropped in every mixture") {
  const World world;
  std::mt19937_64 random(2);
  std::uint64_t states = 0, wholes = 0;
  for (const Path& path : world.paths) {
    CAPTURE(path.name);
    const Snapshot whole = whole_of(world, path);
    world.prepare(path);
    Disk disk(world.folder / "out");
    testing::recorded.clear();
    testing::recording = true;
    path.write();
    testing::recording = false;
    disk.replay(testing::recorded);
    const fs::path destination =
        path.destination.has_filename() ? path.destination : path.destination.parent_path();
    // The model of a disk sees what was written.
    REQUIRE(at(disk.after(disk.calls(), 1.0, random), destination) == whole);
    for (std::size_t end = 0; end <= disk.calls(); ++end) {
      for (int i = 0; i < 10; ++i) {
        const Snapshot found = at(disk.after(end, i / 9.0, random), destination);
        CAPTURE(end);
        CAPTURE(i);
        CHECK((found == path.old || found == whole));
        wholes += found == whole;
        ++states;
      }
    }
  }
  MESSAGE("states: ", states, ", with the new file: ", wholes);
  CHECK(states >= 500);
  CHECK(wholes > 0);
}
