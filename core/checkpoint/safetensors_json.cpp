#include <scalevec/core/checkpoint/safetensors_json.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::size_t most_name = 1024;
constexpr std::size_t most_rank = 8;
constexpr std::size_t smallest_entry = 48;  // "":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}
constexpr std::uint64_t most_count = std::numeric_limits<std::int64_t>::max();
constexpr std::string_view metadata_key = "__metadata__";

struct StoredType {
  std::string_view name;
  DType dtype;
  std::uint64_t bits;
};

constexpr std::array stored_types{
    StoredType{"F32", DType::f32, 32},        StoredType{"BF16", DType::bf16, 16},
    StoredType{"F16", DType::f16, 16},        StoredType{"F64", DType::f64, 64},
    StoredType{"I64", DType::i64, 64},        StoredType{"I32", DType::i32, 32},
    StoredType{"I16", DType::i16, 16},        StoredType{"I8", DType::i8, 8},
    StoredType{"U64", DType::u64, 64},        StoredType{"U32", DType::u32, 32},
    StoredType{"U16", DType::u16, 16},        StoredType{"U8", DType::u8, 8},
    StoredType{"BOOL", DType::boolean, 8},    StoredType{"C64", DType::c64, 64},
    StoredType{"F8_E4M3", DType::f8_e4m3, 8}, StoredType{"F8_E5M2", DType::f8_e5m2, 8},
    StoredType{"F8_E8M0", DType::f8_e8m0, 8}, StoredType{"F8_E4M3FNUZ", DType::f8_e4m3fnuz, 8},
    StoredType{"F4", DType::f4, 4},           StoredType{"F8_E5M2FNUZ", DType::f8_e5m2fnuz, 8},
    StoredType{"F6_E2M3", DType::f6_e2m3, 6}, StoredType{"F6_E3M2", DType::f6_e3m2, 6},
};

std::optional<std::uint64_t> natural(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string_view token_name(JsonToken token) {
  switch (token) {
    case JsonToken::begin_object:
      return "an object";
    case JsonToken::begin_array:
      return "an array";
    case JsonToken::string:
      return "a string";
    case JsonToken::number:
      return "a number";
    case JsonToken::boolean:
      return "true or false";
    default:
      return "null";
  }
}

// Reads the header's JSON, which check_json has passed: here it is only a matter of what it says.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, std::string_view file, JsonLimits limits)
      : text_(text), file_(file), reader_(text, file, limits, 8) {}

  SafetensorsHeader read(std::uint64_t tensors) {
    SafetensorsHeader header;
    header.data_begin = 8 + text_.size();
    header.tensors.reserve(std::min<std::uint64_t>(tensors, text_.size() / smallest_entry + 1));
    reader_.next();
    while (reader_.next() == JsonToken::key) {
      if (reader_.text() == metadata_key) {
        header.metadata_json = read_metadata();
      } else {
        header.tensors.push_back(read_tensor(header.data_begin));
      }
    }
    return header;
  }

 private:
  std::string read_metadata() {
    if (reader_.next() != JsonToken::begin_object)
      refuse_schema({}, metadata_key, "an object of strings", token_name(reader_.token()));
    const std::uint64_t begin = reader_.offset() - 8;
    while (reader_.next() == JsonToken::key) {
      const std::uint64_t key_offset = reader_.offset();
      if (reader_.next() == JsonToken::string) continue;
      const std::string_view found = token_name(reader_.token());
      JsonReader key(text_.substr(key_offset - 8), file_, {.bytes = text_.size()}, key_offset);
      key.next();
      refuse_schema({}, key.text(), "a string, as every value in __metadata__", found);
    }
    return std::string(text_.substr(begin, reader_.end_offset() - 8 - begin));
  }

  TensorInfo read_tensor(std::uint64_t data_begin) {
    TensorInfo tensor;
    tensor.name = read_name();
    if (reader_.next() != JsonToken::begin_object)
      refuse_schema(tensor.name, {}, "an object with dtype, shape and data_offsets",
                    token_name(reader_.token()));
    std::uint64_t bits = 0;
    bool has_dtype = false, has_shape = false, has_range = false;
    while (reader_.next() == JsonToken::key) {
      if (reader_.text() == "dtype") {
        has_dtype = true;
        bits = read_dtype(tensor);
      } else if (reader_.text() == "shape") {
        has_shape = true;
        read_shape(tensor);
      } else if (reader_.text() == "data_offsets") {
        has_range = true;
        read_range(tensor);
      } else {
        refuse_schema(tensor.name, reader_.text(), "dtype, shape and data_offsets only", "an unknown field");
      }
    }
    const std::string_view missing = !has_dtype   ? "dtype"
                                     : !has_shape ? "shape"
                                     : !has_range ? "data_offsets"
                                                  : "";
    if (!missing.empty()) refuse_schema(tensor.name, missing, missing, "no such field");
    check_size(tensor, bits);
    tensor.begin += data_begin;  // fits: check_size bounds it by 2^63
    return tensor;
  }

  std::string read_name() {
    const std::string_view name = reader_.text();
    if (name.size() > most_name) {
      refuse(ErrorCode::limit, "a tensor's name is longer than is read", {},
             fmt::format("at most {} bytes", most_name), fmt::format("{} bytes", name.size()));
    }
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
    if (name.empty() || std::any_of(name.begin(), name.end(), control)) {
      refuse(ErrorCode::name, "a tensor's name is empty or has control bytes", {},
             "a name without control bytes", name.empty() ? "an empty name" : printable(name));
    }
    return std::string(name);
  }

  std::uint64_t read_dtype(TensorInfo& tensor) {
    if (reader_.next() != JsonToken::string)
      refuse_schema(tensor.name, "dtype", "a string", token_name(reader_.token()));
    const auto type = std::find_if(stored_types.begin(), stored_types.end(),
                                   [&](const StoredType& known) { return known.name == reader_.text(); });
    if (type == stored_types.end()) {
      std::vector<std::string_view> names;
      for (const StoredType& known : stored_types) names.push_back(known.name);
      refuse(ErrorCode::dtype, "unknown dtype", tensor.name, fmt::format("one of {}", fmt::join(names, " ")),
             printable(reader_.text(), 40));
    }
    tensor.dtype = type->dtype;
    tensor.dtype_text = type->name;
    return type->bits;
  }

  void read_shape(TensorInfo& tensor) {
    if (reader_.next() != JsonToken::begin_array)
      refuse_schema(tensor.name, "shape", "an array", token_name(reader_.token()));
    std::array<std::uint64_t, most_rank> shape{};
    std::size_t rank = 0;
    for (; reader_.next() != JsonToken::end_array; ++rank) {
      const bool number = reader_.token() == JsonToken::number;
      const auto size = number ? natural(reader_.text()) : std::nullopt;
      if (!size) {
        refuse(ErrorCode::shape, "a dimension is no natural number", tensor.name,
               "an integer from 0 to 2^63 - 1",
               number                                 ? printable(reader_.text(), 40)
               : reader_.token() == JsonToken::string ? fmt::format("\"{}\"", printable(reader_.text(), 40))
                                                      : std::string(token_name(reader_.token())),
               static_cast<std::int64_t>(rank));
      }
      if (rank < most_rank) shape[rank] = *size;
    }
    if (rank > most_rank) {
      refuse(ErrorCode::limit, "a tensor has more dimensions than are read", tensor.name,
             fmt::format("rank at most {}", most_rank), fmt::format("rank {}", rank));
    }
    tensor.shape.assign(shape.begin(), shape.begin() + static_cast<std::ptrdiff_t>(rank));
  }

  // Leaves begin and bytes relative to the data.
  void read_range(TensorInfo& tensor) {
    const std::string_view wanted = "two integers, begin and end";
    if (reader_.next() != JsonToken::begin_array)
      refuse_schema(tensor.name, "data_offsets", wanted, token_name(reader_.token()));
    std::array<std::uint64_t, 2> range{};
    std::size_t count = 0;
    for (; reader_.next() != JsonToken::end_array; ++count) {
      const auto value = reader_.token() == JsonToken::number ? natural(reader_.text()) : std::nullopt;
      if (!value) {
        refuse_schema(tensor.name, "data_offsets", wanted,
                      reader_.token() == JsonToken::number ? printable(reader_.text(), 40)
                                                           : std::string(token_name(reader_.token())));
      }
      if (count < 2) range[count] = *value;
    }
    if (count != 2) refuse_schema(tensor.name, "data_offsets", wanted, fmt::format("{} values", count));
    if (range[0] > range[1]) {
      refuse(ErrorCode::offset, "a tensor's data ends before it begins", tensor.name, "begin <= end",
             fmt::format("[{}, {}]", range[0], range[1]));
    }
    tensor.begin = range[0];
    tensor.bytes = range[1] - range[0];
  }

  void check_size(const TensorInfo& tensor, std::uint64_t bits) {
    // Zeros are left out, so that whether a size overflows does not depend on the order of dimensions.
    std::uint64_t count = 1;
    bool empty = false, fits = true;
    for (const std::uint64_t size : tensor.shape) {
      if (size == 0) {
        empty = true;
      } else {
        fits = fits && !__builtin_mul_overflow(count, size, &count);
      }
    }
    std::uint64_t all_bits = 0;
    fits = fits && count <= most_count && !__builtin_mul_overflow(count / 8, bits, &all_bits) &&
           all_bits <= most_count;
    if (!fits) {
      refuse(ErrorCode::overflow, "a tensor's size does not fit 63 bits", tensor.name,
             "fewer than 2^63 bytes",
             fmt::format("[{}] of {}", fmt::join(tensor.shape, ", "), tensor.dtype_text));
    }
    // Eight elements are a whole number of bytes in every type; of the rest it is asked.
    const std::uint64_t rest = count % 8 * bits;
    const std::uint64_t bytes = empty ? 0 : all_bits + rest / 8;
    if ((!empty && rest % 8 != 0) || bytes != tensor.bytes) {
      refuse(ErrorCode::size, "a tensor's data has another size than its shape and dtype", tensor.name,
             rest % 8 != 0 && !empty ? "a whole number of bytes" : fmt::format("{} bytes", bytes),
             fmt::format("{} bytes for [{}] of {}", tensor.bytes, fmt::join(tensor.shape, ", "),
                         tensor.dtype_text));
    }
    if (tensor.begin > most_count - tensor.bytes - text_.size() - 8) {
      refuse(ErrorCode::trunc, "a tensor's data lies beyond any file", tensor.name, "offsets below 2^63",
             fmt::format("begin {}", tensor.begin));
    }
  }

  [[noreturn]] void refuse_schema(std::string_view tensor, std::string_view key, std::string_view expected,
                                  std::string_view found) const {
    fail(ErrorCode::schema, fmt::format("reading safetensors: expected {}, found {}", expected, found),
         {.file = std::string(file_),
          .tensor = std::string(tensor),
          .key = std::string(key),
          .offset = reader_.offset(),
          .expected = std::string(expected),
          .found = std::string(found)});
  }

  [[noreturn]] void refuse(ErrorCode code, std::string_view what, std::string_view tensor,
                           std::string expected, std::string found,
                           std::optional<std::int64_t> index = std::nullopt) const {
    fail(code, fmt::format("reading safetensors: {}", what),
         {.file = std::string(file_),
          .tensor = std::string(tensor),
          .offset = reader_.offset(),
          .index = index,
          .expected = std::move(expected),
          .found = std::move(found)});
  }

  std::string_view text_, file_;
  JsonReader reader_;
};

[[noreturn]] void refuse_duplicate(const JsonDuplicate& twice, std::string_view file) {
  const bool metadata = twice.key == metadata_key || twice.parent == metadata_key;
  ErrorFields fields{.file = std::string(file),
                     .offset = twice.second,
                     .expected = "each key once",
                     .found = fmt::format("the first at byte {}", twice.first)};
  fields.tensor = metadata ? "" : twice.depth == 1 ? twice.key : twice.parent;
  fields.key = !metadata && twice.depth == 1 ? "" : twice.key;
  fail(ErrorCode::dup,
       fmt::format(
           "reading safetensors: '{}' stands twice, at bytes {} and {}; readers disagree which one counts",
           printable(twice.key, 100), twice.first, twice.second),
       std::move(fields));
}

}  // namespace

SafetensorsHeader read_safetensors_json(std::string_view text, std::string_view file) {
  const JsonLimits limits{.bytes = text.size()};
  const std::size_t last = text.find_last_not_of(' ');  // the format pads with spaces, and with spaces only
  if (last != std::string_view::npos && (text[last] == '\n' || text[last] == '\t' || text[last] == '\r')) {
    fail(ErrorCode::json, "reading safetensors: the header is padded with something else than spaces",
         {.file = std::string(file),
          .offset = 8 + last,
          .expected = "'}' or a space",
          .found = printable(text.substr(last, 1))});
  }
  const JsonSummary summary = check_json(text, file, limits, 8);
  if (summary.duplicate) refuse_duplicate(*summary.duplicate, file);
  return HeaderReader(text, file, limits).read(summary.members);
}

}  // namespace scalevec
