#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/error.h>

#include "readers/errors.h"
#include "support/files.h"
#include "support/open_watch.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::OpenWatch;
using testing::TemporaryFolder;
using testing::write_text;

namespace {

std::string read_all(const SourceFile& file) {
  std::string out(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(out)));
  return out;
}

std::size_t open_descriptors() {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator("/proc/self/fd"), {}));
}

// A modification time that no clock of the test's machine gives by chance.
void touch(const fs::path& path) {
  fs::last_write_time(path, fs::last_write_time(path) + std::chrono::hours(1));
}

}  // namespace

TEST_CASE("source file: reads what is asked for, and no more than there is") {
  const TemporaryFolder folder;
  write_text(folder / "f", "0123456789");
  SourceFile file(folder / "f");
  CHECK(file.size() == 10);
  CHECK(read_all(file) == "0123456789");
  std::string part(3, '\0');
  file.read(7, std::as_writable_bytes(std::span(part)));
  CHECK(part == "789");
  file.read(10, {});

  auto fields =
      refusal([&] { file.read(8, std::as_writable_bytes(std::span(part)), "t"); }, ErrorCode::trunc);
  CHECK(fields.offset == 8);
  CHECK(fields.tensor == "t");
  refusal([&] { file.read(~std::uint64_t{0}, std::as_writable_bytes(std::span(part))); }, ErrorCode::trunc);

  SourceFile moved = std::move(file);
  CHECK(read_all(moved) == "0123456789");
}

TEST_CASE("source file: works after the working folder has changed") {
  const TemporaryFolder folder;
  write_text(folder / "f", "x");
  const fs::path home = fs::current_path();
  fs::current_path(folder.path());
  const SourceFile file("f");
  fs::current_path(home);
  CHECK(read_all(file) == "x");
}

TEST_CASE("source file: what is no regular file is refused at once and by its kind (F5)") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "directory");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (folder / "socket").c_str(), sizeof address.sun_path - 1);
  REQUIRE(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);

  const std::size_t descriptors = open_descriptors();
  const std::pair<fs::path, std::string> kinds[] = {
      {folder / "directory", "a directory"}, {folder / "fifo", "a FIFO"},
      {folder / "socket", "a socket"},       {"/dev/zero", "a character device"},
      {folder / "absent", "no file"},        {folder / "fifo" / "x", "no file"}};
  for (const auto& [path, kind] : kinds) {
    CAPTURE(path);
    const ErrorFields want{.file = path.string(), .expected = "a regular file", .found = kind};
    check_fields(row_refusal([&] { SourceFile file(path); }, ErrorCode::path), want);
    check_fields(row_refusal([&] { SafetensorsFile file(path); }, ErrorCode::path), want);
  }
  const fs::path with_nul = folder.path() / std::string("directory\0.safetensors", 22);
  check_fields(row_refusal([&] { SourceFile file(with_nul); }, ErrorCode::path),
               {.file = with_nul.string(), .expected = "a regular file", .found = "a NUL byte"});
  CHECK(open_descriptors() == descriptors);
  ::close(listener);
}

TEST_CASE("source file: a file that shrinks after opening is an error of input (S51)") {
  const TemporaryFolder folder;
  const fs::path path = folder / "m.safetensors";
  const std::string header = "{" + testing::entry("a", "U8", "[100000]", "[0,100000]") + "}";
  write_text(path, testing::safetensors(header, std::string(100'000, 'x')));
  const SafetensorsFile file(path);
  fs::resize_file(path, 50'000);
  std::string out(100'000, '\0');
  check_fields(row_refusal([&] { file.read(file.tensors()[0], std::as_writable_bytes(std::span(out))); },
                           ErrorCode::io),
               {.file = path.string(),
                .tensor = "a",
                .offset = file.data_begin(),
                .expected = fmt::format("{} bytes", 8 + header.size() + 100'000),
                .found = "50000 bytes"});
}

TEST_CASE("source file: a file that is replaced, rewritten or removed after opening is told (S52)") {
  const TemporaryFolder folder;
  const fs::path path = folder / "m.safetensors";
  const std::string header = "{" + testing::entry("a", "U8", "[4]", "[0,4]") + "}";
  const std::string good = testing::safetensors(header, "abcd");
  const auto state_after = [&](const char* expected, const char* found, auto&& change) {
    write_text(path, good);
    const SafetensorsFile file(path);
    change();
    std::string out(4, '\0');
    check_fields(row_refusal([&] { file.read(file.tensors()[0], std::as_writable_bytes(std::span(out))); },
                             ErrorCode::state),
                 {.file = path.string(),
                  .tensor = "a",
                  .offset = file.data_begin(),
                  .expected = expected,
                  .found = found});
  };
  SUBCASE("another file under the name") {
    state_after("the file that was opened", "another file under its name", [&] {
      write_text(folder / "other", good);
      fs::rename(folder / "other", path);
    });
  }
  SUBCASE("written in place") {
    state_after("an unchanged file", "another modification time", [&] {
      write_text(path, good);
      touch(path);
    });
  }
  SUBCASE("grown") {
    state_after(fmt::format("{} bytes", good.size()).c_str(),
                fmt::format("{} bytes", good.size() + 4).c_str(), [&] { write_text(path, good + "more"); });
  }
  SUBCASE("removed") {
    state_after("the file that was opened", "another file under its name", [&] { fs::remove(path); });
  }
}

TEST_CASE("source file: inside a folder, links are followed only to its own files (P16)") {
  const TemporaryFolder outer;
  const fs::path folder = outer / "model";
  fs::create_directory(folder);
  fs::create_directory(folder / "sub");
  write_text(outer / "secret", "secret");
  write_text(folder / "plain", "plain");
  write_text(folder / "sub" / "deep", "deep");
  fs::create_symlink("plain", folder / "near");
  fs::create_symlink("near", folder / "nearer");
  fs::create_symlink(fs::absolute(folder / "plain"), folder / "absolute");
  fs::create_symlink("sub/../plain", folder / "around");
  fs::create_symlink("../secret", folder / "out");
  fs::create_symlink("out", folder / "further out");
  fs::create_symlink(outer / "secret", folder / "absolutely out");
  fs::create_symlink("sub/deep", folder / "below");
  fs::create_symlink("loop", folder / "loop");
  fs::create_symlink("absent", folder / "dangling");
  fs::create_directory_symlink("..", folder / "up");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  fs::create_symlink("fifo", folder / "to fifo");
  fs::create_hard_link(folder / "plain", folder / "hard");

  for (const std::string name : {"plain", "near", "nearer", "absolute", "around", "hard"}) {
    CAPTURE(name);
    CHECK(read_all(SourceFile::inside(folder, name, false)) == "plain");
  }
  const OpenWatch secret(outer / "secret"), fifo(folder / "fifo"), deep(folder / "sub" / "deep");
  for (const std::string name :
       {"out", "further out", "absolutely out", "below", "loop", "dangling", "up", "fifo", "to fifo", "sub",
        "absent", "", ".", "..", "../secret", "sub/deep", "/etc/passwd", "a\\b"}) {
    CAPTURE(name);
    const auto fields = refusal([&] { SourceFile::inside(folder, name, false, "key"); }, ErrorCode::path);
    CHECK(fields.key == "key");
  }
  CHECK_FALSE(secret.opened());
  CHECK_FALSE(deep.opened());
  for (const std::string name : {"up", "fifo", "to fifo", "..", "../secret", "dangling", "loop"})
    refusal([&] { SourceFile::inside(folder, name, true); }, ErrorCode::path);
  CHECK_FALSE(secret.opened());
  CHECK_FALSE(fifo.opened());
  for (const std::string name : {"out", "further out", "absolutely out"}) {
    CHECK(read_all(SourceFile::inside(folder, name, true)) == "secret");
    CHECK(secret.opened());
  }
}

TEST_CASE("source file: a file swapped for a link while it is opened never leads outside (P16)") {
  const TemporaryFolder outer;
  const fs::path folder = outer / "model";
  fs::create_directory(folder);
  write_text(outer / "secret", "secret");
  write_text(folder / "f", "inside!");
  fs::create_symlink("../secret", folder / "g");
  const OpenWatch secret(outer / "secret");
  // Exchanged in one step, so that each moment is as likely to fall between two calls of the reader as any
  // other.
  std::atomic<bool> stop = false;
  std::thread swapper([&] {
    while (!stop)
      ::renameat2(AT_FDCWD, (folder / "f").c_str(), AT_FDCWD, (folder / "g").c_str(), RENAME_EXCHANGE);
  });
  int read = 0;
  for (int race = 0; race < 20000; ++race) {
    try {
      const SourceFile file = SourceFile::inside(folder, "f", false);
      const std::string text = read_all(file);
      CHECK(text == "inside!");
      ++read;
    } catch (const Error& error) {
      // A link that leaves the folder, or a file that was replaced before it was read.
      CHECK((error.code() == ErrorCode::path || error.code() == ErrorCode::state));
    }
  }
  stop = true;
  swapper.join();
  CHECK(read > 0);
  CHECK_FALSE(secret.opened());
}
