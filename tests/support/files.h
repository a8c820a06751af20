#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace scalevec::testing {

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  if (!out) throw std::runtime_error("cannot write " + path.string());
}

/// Every regular file under `path` with its bytes, by name relative to it; a file alone has the name "".
inline std::map<std::string, std::string> snapshot(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::map<std::string, std::string> files;
  if (fs::is_regular_file(path)) files[""] = read_text(path);
  if (!fs::is_directory(path)) return files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), path).string()] = read_text(entry.path());
  }
  return files;
}

/// Every file, folder and link under `path`, with its length and the time of its last change: what a reader
/// must leave as it was.
inline std::map<std::string, std::pair<std::uintmax_t, std::filesystem::file_time_type>> listing(
    const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::map<std::string, std::pair<std::uintmax_t, fs::file_time_type>> out;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path)) {
    const bool plain = !entry.is_symlink() && entry.is_regular_file();
    const fs::file_time_type never;
    out[entry.path().string()] = {plain ? entry.file_size() : 0, plain ? entry.last_write_time() : never};
  }
  return out;
}

}  // namespace scalevec::testing
