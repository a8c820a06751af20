#include <scalevec/edits/edited_vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>

namespace scalevec {
namespace {

using nlohmann::json;

constexpr std::int64_t widest = std::int64_t{1} << 24;

std::vector<Step> read_steps(const EditFields& fields, const std::string& text, const EditedVector& vector,
                             std::size_t operations) {
  std::vector<Step> steps;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const std::size_t at = std::min(item.find('@'), item.size());
    std::size_t number = 0;
    for (const char c : item.substr(0, at)) {
      if (c < '0' || c > '9' || number > operations)
        number = operations + 1;
      else
        number = number * 10 + static_cast<std::size_t>(c - '0');
    }
    if (number < 1 || number > operations || (!steps.empty() && number - 1 <= steps.back().operation)) {
      fields.refuse("by", fmt::format("numbers of operations, 1 to {}, ascending", operations), text);
    }
    Step step{number - 1, vector.channels};
    if (at < item.size()) step.channels = fields.channels("by", item.substr(at + 1), vector.width);
    if (!std::includes(vector.channels.begin(), vector.channels.end(), step.channels.begin(),
                       step.channels.end())) {
      fields.refuse("by", "channels that the vector lists", item);
    }
    steps.push_back(std::move(step));
    begin = end + 1;
  }
  return steps;
}

}  // namespace

EditedVector read_vector(const EditFields& fields, std::size_t operations) {
  EditedVector vector;
  vector.address = fields.text("address");
  try {
    vector.address = Address::parse(vector.address).str();
  } catch (const Error& error) {
    fields.refuse("address", "an address", error.message());
  }
  vector.native = fields.text("native");
  if (vector.native.size() > 1024) fields.refuse("native", "at most 1024 bytes", vector.native);
  const std::string dtype = fields.text("dtype");
  bool known = false;
  for (const DType each : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    if (dtype != dtype_name(each)) continue;
    vector.dtype = each;
    known = true;
  }
  if (!known) fields.refuse("dtype", "F64, F32, F16 or BF16", dtype);
  vector.offset = fields.number("offset", fields.get("offset"));
  if (!std::isfinite(vector.offset))
    fields.refuse("offset", "a finite number", fmt::format("{}", vector.offset));
  vector.width = fields.integer("width", 1, widest);
  vector.base = fields.digest("base");
  vector.after = fields.digest("after");
  vector.channels = fields.channels("channels", fields.text("channels"), vector.width);
  vector.old = fields.bytes("old", fields.get("old"));
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  if (vector.old.size() != vector.channels.size() * size) {
    fields.refuse("old",
                  fmt::format("{} bytes ({} channels of {})", vector.channels.size() * size,
                              vector.channels.size(), size),
                  fmt::format("{} bytes", vector.old.size()));
  }
  vector.steps = read_steps(fields, fields.text("by"), vector, operations);
  fields.only({"address", "native", "dtype", "offset", "width", "base", "after", "channels", "by", "old"});
  return vector;
}

void check_vector(const Edit& edit, const EditedVector& vector, const EditFields& fields) {
  std::vector<std::byte> after;
  try {
    after = new_bytes(edit, vector);
  } catch (const Error& error) {
    fields.refuse("by", "operations that can be run", error.message());
  }
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  for (std::size_t i = 0; i < vector.channels.size(); ++i) {
    if (std::memcmp(after.data() + i * size, vector.old.data() + i * size, size) == 0) {
      fields.refuse("channels", "channels that the operations change",
                    fmt::format("channel {}", vector.channels[i]));
    }
  }
  if (static_cast<std::int64_t>(vector.channels.size()) != vector.width) return;
  const auto digest = [&](std::span<const std::byte> bytes) {
    return vector_digest(vector.dtype, vector.width, vector.offset, bytes);
  };
  if (digest(vector.old) != vector.base) fields.refuse("base", digest(vector.old), vector.base);
  if (digest(after) != vector.after) fields.refuse("after", digest(after), vector.after);
}

}  // namespace scalevec
