#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <scalevec/core/atomic_file.h>
#include <scalevec/edits/edit.h>

namespace scalevec {

/// The text of an edit file (*.sv.json): JSON with one form for each edit, so that equal edits are equal
/// bytes.
///
/// Fields, in this order: schema, tool, family, source, note (if any), operations, vectors, digest. Numbers
/// are the shortest decimals that read back the same; NaN and infinities the words "nan", "inf", "-inf".
/// `channels` is a selector's text, or "bits:" and a base64 bitmap (channel 0 is the lowest bit) where that
/// is shorter; `old` the base's bytes there, base64; `by` the numbers of the operations that touch the
/// vector, with the channels where they touch only some. `digest` is SHA-256 over all bytes before its line.
///
/// At most 1.4 bytes for each touched byte (old bytes, and values that are set channel by channel), 0.5 KB
/// for each vector and once for the file, and what users wrote (selectors, a note, the model's name); where a
/// 16-bit dtype loses changes in no order, one bit more for each channel.
std::string edit_text(const Edit& edit);

/// The inverse. E_BUNDLE, with the field in `key` and its entry in `index`, for anything but what edit_text
/// writes; E_JSON, E_DUP, E_UTF8 and E_LIMIT where the text is no JSON or too large. `source` names it in
/// messages.
Edit parse_edit(std::string_view text, std::string_view source);

/// Atomically. E_PATH if the file exists, unless `replace` allows it.
void write_edit(const Edit& edit, const std::filesystem::path& path, Replace replace = Replace::no);
Edit read_edit(const std::filesystem::path& path);

}  // namespace scalevec
