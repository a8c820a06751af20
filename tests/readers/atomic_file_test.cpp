#include <scalevec/core/atomic_file.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

#include "support/files.h"
#include "support/temporary_folder.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::read_text;
using testing::snapshot;
using testing::TemporaryFolder;
using testing::write_text;

namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

template <class Call>
ErrorCode code_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  FAIL("nothing was thrown");
  return ErrorCode::io;
}

}  // namespace

TEST_CASE("AtomicFile: nothing has the name before commit, all of it after") {
  const TemporaryFolder folder;
  const fs::path target = folder / "out.bin";
  {
    AtomicFile file(target, Replace::no);
    file.append(bytes("hello "));
    file.append(bytes("world"));
    file.write_at(0, bytes("J"));
    CHECK_FALSE(fs::exists(target));
    file.commit();
    CHECK(read_text(target) == "Jello world");
  }
  CHECK(snapshot(folder.path()).size() == 1);
}

TEST_CASE("AtomicFile: what is not committed leaves no trace, and the old file as it was") {
  const TemporaryFolder folder;
  const fs::path target = folder / "out.bin";
  write_text(target, "old");
  {
    AtomicFile file(target, Replace::files);
    file.append(bytes("new"));
  }
  CHECK(snapshot(folder.path()) == std::map<std::string, std::string>{{"out.bin", "old"}});
  write_atomically(target, std::string_view("new"), Replace::files);
  CHECK(snapshot(folder.path()) == std::map<std::string, std::string>{{"out.bin", "new"}});
}

TEST_CASE("AtomicFile: refuses what may not be replaced") {
  const TemporaryFolder folder;
  write_text(folder / "full", "x");
  write_text(folder / "empty", "");
  fs::create_directory(folder / "folder");
  fs::create_symlink(folder / "nowhere", folder / "dangling");
  fs::create_symlink(folder / "empty", folder / "link");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const auto refused = [&](const char* name, Replace replace) {
    return code_of([&] { AtomicFile(folder / name, replace); });
  };
  CHECK(refused("full", Replace::no) == ErrorCode::path);
  for (const Replace replace : {Replace::no, Replace::files}) {
    for (const char* name : {"folder", "dangling", "link", "fifo", "absent/x", "full/x", ".", ""}) {
      CAPTURE(name);
      CHECK(refused(name, replace) == ErrorCode::path);
    }
  }
  AtomicFile(folder / "empty", Replace::no).commit();
  CHECK(snapshot(folder.path()).at("full") == "x");
}

TEST_CASE("AtomicFile: a file that comes while we write is not overwritten") {
  const TemporaryFolder folder;
  AtomicFile file(folder / "out", Replace::no);
  file.append(bytes("ours"));
  write_text(folder / "out", "theirs");
  CHECK(code_of([&] { file.commit(); }) == ErrorCode::path);
  CHECK(read_text(folder / "out") == "theirs");
}

TEST_CASE("AtomicFolder: appears whole, over nothing or an empty folder only") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "empty");
  for (const char* name : {"new", "new-with-slash/", "empty"}) {
    CAPTURE(name);
    AtomicFolder made(folder / name);
    fs::create_directory(made.path() / "deep");
    write_atomically(made.path() / "deep" / "a", std::string_view("1"), Replace::no);
    CHECK_FALSE(fs::exists(folder / name / "deep"));
    made.commit();
    CHECK(snapshot(folder / name) == std::map<std::string, std::string>{{"deep/a", "1"}});
  }
  CHECK(code_of([&] { AtomicFolder(folder / "new"); }) == ErrorCode::path);
  CHECK(code_of([&] { AtomicFolder(folder / "new" / "deep" / "a"); }) == ErrorCode::path);
  { AtomicFolder dropped(folder / "dropped"); }
  CHECK_FALSE(fs::exists(folder / "dropped"));
}

TEST_CASE("clean_leftovers: a dead writer's files go, a living one's stay") {
  const TemporaryFolder folder;
  AtomicFile living(folder / "living", Replace::no);
  AtomicFolder living_folder(folder / "living-folder");
  write_text(living_folder.path() / "inside", "x");
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // dies with a file and a folder half written
    AtomicFile file(folder / "dead", Replace::no);
    file.append(bytes("half"));
    AtomicFolder dead(folder / "dead-folder");
    write_text(dead.path() / "half", "x");
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  write_text(folder / "notes.scalevec-tmp", "not ours: no dot before the name");
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 5);
  CHECK(clean_leftovers(folder.path()) == 2);
  CHECK(clean_leftovers(folder.path()) == 0);
  living.commit();
  living_folder.commit();
  CHECK(snapshot(folder.path()) ==
        std::map<std::string, std::string>{{"living", ""},
                                           {"living-folder/inside", "x"},
                                           {"notes.scalevec-tmp", "not ours: no dot before the name"}});
}

TEST_CASE("AtomicFile: a folder that cannot be written is E_PATH") {
  const TemporaryFolder folder;
  const auto readable =
      fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec;
  fs::permissions(folder.path(), readable);
  const bool root = ::geteuid() == 0;  // who may write anywhere
  if (root) REQUIRE(::seteuid(65534) == 0);
  CHECK(code_of([&] { AtomicFile(folder / "x", Replace::no); }) == ErrorCode::path);
  CHECK(code_of([&] { AtomicFolder(folder / "x"); }) == ErrorCode::path);
  if (root) REQUIRE(::seteuid(0) == 0);
  fs::permissions(folder.path(), fs::perms::owner_all);
}
