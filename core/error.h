#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace scalevec {

enum class ErrorCode {
  addr,       // no such address, channel or selection
  bundle,     // an edit file that does not fit, or is damaged
  config,     // a configuration that is missing, unknown or contradicts the tensors
  device,     // a device that is absent
  dtype,      // an element type that is unknown or unfit
  dup,        // a key or name that stands twice
  format,     // not the format it should be
  index,      // a shard index that contradicts the shards
  io,         // the operating system refused
  json,       // text that is not JSON
  limit,      // larger than we read
  name,       // a name that is empty or has control bytes
  no_effect,  // an edit that changes nothing
  offset,     // data offsets that overlap, leave holes or run backwards
  overflow,   // a size that does not fit 64 bits
  path,       // a path that leads elsewhere, or to something that is no file
  quant,      // a quantised tensor where none can be
  schema,     // a field that is missing, unknown or of the wrong type
  shape,      // a dimension or a length that does not fit
  size,       // a byte count that contradicts shape and dtype
  state,      // the object or file changed under our hands
  trail,      // bytes after the end
  trunc,      // fewer bytes than promised
  utf8,       // text that is not UTF-8
  value,      // a value out of range
};

/// "E_ADDR", "E_BUNDLE", ...
std::string_view code_name(ErrorCode code);

/// What an error is about; empty where it does not apply.
struct ErrorFields {
  std::string file = {};
  std::string tensor = {};                   // a tensor's native name, or an address
  std::string key = {};                      // a metadata key, field or verb
  std::optional<std::uint64_t> offset = {};  // byte in `file`
  std::optional<std::int64_t> index = {};    // channel, dimension or entry
  std::string expected = {};
  std::string found = {};
};

/// What every exception of this library can be caught as, beside its standard type.
///
/// addr is std::out_of_range (IndexError in Python); io, path and device are std::runtime_error (OSError;
/// device RuntimeError); all others are std::invalid_argument (ValueError).
class Error {
 public:
  virtual ~Error() = default;
  ErrorCode code() const { return code_; }
  const ErrorFields& fields() const { return fields_; }
  /// At most 1 KiB, control bytes escaped; begins with the code's name.
  const std::string& message() const { return message_; }

 protected:
  Error(ErrorCode code, std::string message, ErrorFields fields)
      : code_(code), message_(std::move(message)), fields_(std::move(fields)) {}

 private:
  ErrorCode code_;
  std::string message_;
  ErrorFields fields_;
};

/// The thrown type: a standard exception and an Error.
template <class Standard>
class ErrorAs final : public Standard, public Error {
 public:
  ErrorAs(ErrorCode code, const std::string& message, ErrorFields fields)
      : Standard(message), Error(code, message, std::move(fields)) {}
};

/// Throws. `message` names the operation, what it met, and the way out; the file, tensor, key, offset,
/// expected and found of `fields` are appended to it where it does not say them already.
[[noreturn]] void fail(ErrorCode code, std::string_view message, ErrorFields fields = {});

/// `text` with control bytes and invalid UTF-8 as \xNN, cut to `most` bytes with "..." for the rest.
std::string printable(std::string_view text, std::size_t most = 200);

}  // namespace scalevec
