#include <scalevec/core/checkpoint/looks_like.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

namespace scalevec {
namespace {

struct Magic {
  std::size_t at;
  std::string_view bytes;
  std::string_view name;
};

using namespace std::string_view_literals;

constexpr std::array magics{
    Magic{0, "GGUF"sv, "a GGUF file"},
    Magic{0, "PK\x03\x04"sv,
          "a zip archive, as torch.save and TorchScript write (pickle refused: loading one runs code)"},
    Magic{0, "PK\x05\x06"sv, "an empty zip archive"},
    Magic{0, "\x1f\x8b"sv, "gzip-compressed data (decompress it first)"},
    Magic{0, "\x28\xb5\x2f\xfd"sv, "zstd-compressed data (decompress it first)"},
    Magic{0,
          "\xfd"
          "7zXZ"sv,
          "xz-compressed data (decompress it first)"},
    Magic{0, "\x89HDF\r\n\x1a\n"sv, "an HDF5 file"},
    Magic{0, "version https://git-lfs"sv, "a Git LFS pointer (run git lfs pull to fetch the file itself)"},
    Magic{0, "ggml"sv, "a GGML file from before GGUF (convert it with llama.cpp)"},
    Magic{0, "tjgg"sv, "a GGJT file from before GGUF (convert it with llama.cpp)"},
    Magic{257, "ustar"sv, "a tar archive (pickle refused: loading one runs code)"},
};

bool starts_with_ignoring_case(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char want, char have) {
           return want == static_cast<char>(std::tolower(static_cast<unsigned char>(have)));
         });
}

// Pickle protocols 2 and later begin with 0x80 and their number, then in practice one of few opcodes. The
// text protocols 0 and 1 begin with an opcode that pushes a mark, a dictionary, a list or a global.
bool pickle(std::string_view text) {
  if (text.size() >= 3 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) {
    return "\x95\x8a\x8c}](cX.ICNK\x88\x89)"sv.find(text[2]) != std::string_view::npos;
  }
  const auto begins = [&](std::string_view opcodes) { return text.starts_with(opcodes); };
  return begins("}q\0"sv) || begins("]q\0"sv) || begins("(dp") || begins("(lp") || begins("(tp") ||
         begins("ccollections\n") || begins("ctorch") || begins("cposix\n") || begins("cos\n") ||
         begins("cbuiltins\n") || begins("c__builtin__\n");
}

}  // namespace

std::string_view looks_like(std::span<const std::byte> start) {
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  for (const Magic& magic : magics) {
    if (text.size() >= magic.at && text.substr(magic.at).starts_with(magic.bytes)) return magic.name;
  }
  if (pickle(text)) return "a pickle (pickle refused: loading one runs code)";
  // safetensors: a length of at most 100 MB in eight bytes, then the brace of its header.
  if (text.size() >= 9 && text[8] == '{' && text.substr(4, 4) == "\0\0\0\0"sv) return "a safetensors file";

  std::string_view trimmed = text;
  while (!trimmed.empty() && std::isspace(static_cast<unsigned char>(trimmed.front())) != 0)
    trimmed.remove_prefix(1);
  for (const std::string_view tag : {"<!doctype html"sv, "<html"sv, "<head"sv}) {
    if (starts_with_ignoring_case(trimmed, tag)) return "an HTML page (a download that was refused?)";
  }
  if (trimmed.starts_with('{')) return "JSON text";
  const bool all_printed = std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || std::isprint(byte) != 0 || std::isspace(byte) != 0;
  });
  // Fewer bytes are printed by chance: a word of another format, the length of a header.
  if (text.size() >= 16 && all_printed) return "text, no model";
  return {};
}

}  // namespace scalevec
