#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec {

/// RFC 4648, with padding.
std::string base64_encode(std::span<const std::byte> bytes);
/// The bytes, or nothing unless `text` is exactly what base64_encode writes.
std::optional<std::vector<std::byte>> base64_decode(std::string_view text);

}  // namespace scalevec
