#include <scalevec/core/checkpoint/gguf_tensors.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/gguf_metadata.h>
#include <scalevec/core/checkpoint/name_order.h>
#include <scalevec/core/checkpoint/quants.h>

namespace scalevec {
namespace {

constexpr std::uint64_t most_name = 63;
constexpr std::uint32_t most_dimensions = 4;
constexpr std::uint64_t most_signed = std::numeric_limits<std::int64_t>::max();

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }

// As a C program would compare it.
std::string_view until_nul(std::string_view name) { return name.substr(0, name.find('\0')); }

class TableReader {
 public:
  TableReader(GgufCursor& cursor, std::uint64_t count, std::uint64_t alignment)
      : cursor_(cursor), alignment_(alignment) {
    tensors_.reserve(count);
    name_begins_.reserve(count);
  }

  GgufTensors read(std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) read_tensor();
    const std::uint64_t data_begin = padded(cursor_.at());
    check_names();
    check_layout(data_begin);
    for (TensorInfo& tensor : tensors_) tensor.begin += data_begin;
    return {std::move(tensors_), data_begin};
  }

 private:
  std::uint64_t padded(std::uint64_t bytes) const {
    return (bytes + alignment_ - 1) / alignment_ * alignment_;
  }

  void read_tensor() {
    TensorInfo tensor;
    name_begins_.push_back(static_cast<std::uint32_t>(cursor_.at()));
    tensor.name = read_name();
    cursor_.subject.tensor = tensor.name;
    read_shape(tensor);
    const GgmlType& type = read_element_type(tensor);
    set_bytes(tensor, type);
    const std::uint64_t begin = cursor_.at();
    tensor.begin = cursor_.value<std::uint64_t>();
    if (tensor.begin % alignment_ != 0) {
      cursor_.refuse(ErrorCode::offset, "a tensor's data is not aligned", begin,
                     fmt::format("a multiple of {}", alignment_), std::to_string(tensor.begin));
    }
    tensors_.push_back(std::move(tensor));
    cursor_.subject = {};
  }

  std::string read_name() {
    const std::uint64_t begin = cursor_.at();
    const auto size = cursor_.value<std::uint64_t>();
    if (size == 0)
      cursor_.refuse(ErrorCode::name, "a tensor's name is empty", begin, "1 to 63 bytes", "an empty name");
    if (size > most_name)
      cursor_.refuse(ErrorCode::limit, "a tensor's name is longer than the format allows", begin,
                     in_bytes(most_name), in_bytes(size));
    return std::string(cursor_.take(size), size);
  }

  void read_shape(TensorInfo& tensor) {
    const std::uint64_t begin = cursor_.at();
    const auto dimensions = cursor_.value<std::uint32_t>();
    if (dimensions > most_dimensions) {
      cursor_.refuse(ErrorCode::shape, "a tensor has more dimensions than the format allows", begin,
                     "at most 4", std::to_string(dimensions));
    }
    // Zeros are left out of the product: whether it overflows must not depend on the order of dimensions.
    std::uint64_t count = 1;
    bool fits = true;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      const auto size = cursor_.value<std::uint64_t>();
      if (size > most_signed) refuse_dimension(cursor_.at() - 8, i, size);
      fits = fits && (size == 0 || (!__builtin_mul_overflow(count, size, &count) && count <= most_signed));
      tensor.shape.push_back(size);
    }
    std::ranges::reverse(tensor.shape);
    if (!fits) {
      cursor_.refuse(ErrorCode::overflow, "a tensor's number of elements does not fit 63 bits", begin,
                     "fewer than 2^63 elements", shape_text(tensor));
    }
    const auto largest = std::ranges::find(tensor.shape, most_signed);
    if (largest != tensor.shape.end()) {
      const auto inner = static_cast<std::uint32_t>(tensor.shape.end() - largest - 1);
      refuse_dimension(begin + 4 + 8 * inner, inner, most_signed);
    }
  }

  [[noreturn]] void refuse_dimension(std::uint64_t begin, std::uint32_t index, std::uint64_t size) {
    cursor_.subject.index = index;
    cursor_.refuse(ErrorCode::shape, "a dimension is out of range", begin, "0 to 2^63 - 2",
                   std::to_string(static_cast<std::int64_t>(size)));
  }

  const GgmlType& read_element_type(TensorInfo& tensor) {
    const std::uint64_t begin = cursor_.at();
    const auto id = cursor_.value<std::uint32_t>();
    const GgmlType* type = ggml_type(id);
    if (type == nullptr) {
      cursor_.refuse(ErrorCode::dtype, "unknown or removed element type", begin,
                     "a type of ggml, such as 0 (F32) or 12 (Q4_K)", fmt::format("type {}", id));
    }
    tensor.dtype = type->dtype;
    tensor.dtype_text = type->name;
    return *type;
  }

  void set_bytes(TensorInfo& tensor, const GgmlType& type) {
    const std::uint64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (row % type.block.elements != 0) {
      cursor_.refuse(ErrorCode::quant,
                     fmt::format("rows of {} elements do not hold whole blocks of {}", row, type.name),
                     cursor_.at(), fmt::format("a multiple of {}", type.block.elements), std::to_string(row));
    }
    // read_shape has seen to it that the product without its zeros fits; its bytes must fit too.
    std::uint64_t count = 1, bytes = 0;
    for (const std::uint64_t size : tensor.shape) count *= std::max<std::uint64_t>(size, 1);
    const std::uint64_t blocks = count / type.block.elements + (count % type.block.elements != 0 ? 1 : 0);
    const bool fits =
        !__builtin_mul_overflow(blocks, type.block.bytes, &bytes) && bytes <= most_signed - (alignment_ - 1);
    const bool empty = std::ranges::find(tensor.shape, std::uint64_t{0}) != tensor.shape.end();
    tensor.bytes = empty ? 0 : bytes;
    const std::uint64_t all = padded(tensor.bytes);
    if (!fits || all > most_signed - all_bytes_) {
      cursor_.refuse(
          ErrorCode::overflow,
          fits ? "the tensors' sizes together do not fit 63 bits" : "a tensor's size does not fit 63 bits",
          cursor_.at(), "fewer than 2^63 bytes", fmt::format("{} of {}", shape_text(tensor), type.name));
    }
    all_bytes_ += all;
  }

  static std::string shape_text(const TensorInfo& tensor) {
    std::string text;
    for (const std::uint64_t size : tensor.shape) text += (text.empty() ? "[" : ", ") + std::to_string(size);
    return text + "]";
  }

  void check_names() {
    const auto name = [&](std::uint32_t i) { return until_nul(tensors_[i].name); };
    const NameOrder order = order_by_name(tensors_.size(), name);
    if (const auto twice = first_duplicate(order, name)) {
      const auto [first, second] = *twice;
      cursor_.subject.tensor = tensors_[second].name;
      cursor_.refuse_duplicate(tensors_[second].name, name_begins_[first], name_begins_[second]);
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const std::string& text = tensors_[i].name;
      const auto bad = std::ranges::find_if(text, is_control);
      const bool control = bad != text.end();
      const std::size_t place =
          control ? static_cast<std::size_t>(bad - text.begin()) : first_invalid_utf8(text);
      if (place == std::string::npos) continue;
      cursor_.subject.tensor = text;
      cursor_.refuse(control ? ErrorCode::name : ErrorCode::utf8,
                     fmt::format("the tensor name '{}' has {}", printable(text),
                                 control ? "control bytes" : "bytes that are not UTF-8"),
                     name_begins_[i] + 8 + place, "a name in UTF-8 without control bytes",
                     fmt::format("byte 0x{:02x}", static_cast<unsigned char>(text[place])));
    }
  }

  // The data is covered without overlap or hole, in any order, and the file holds all of it and nothing more.
  void check_layout(std::uint64_t data_begin) {
    const auto place = [&](std::uint32_t i) { return std::tuple(tensors_[i].begin, tensors_[i].bytes, i); };
    std::vector<std::uint32_t> order(tensors_.size());
    std::iota(order.begin(), order.end(), 0u);
    if (!std::ranges::is_sorted(order, {}, place)) std::ranges::sort(order, {}, place);
    std::uint64_t end = 0;
    const TensorInfo* previous = nullptr;
    for (const std::uint32_t i : order) {
      const TensorInfo& tensor = tensors_[i];
      cursor_.subject.tensor = tensor.name;
      if (tensor.begin != end) {
        const std::string whose =
            previous != nullptr ? fmt::format(", the padded end of '{}'", printable(previous->name)) : "";
        cursor_.refuse(
            ErrorCode::offset,
            tensor.begin < end ? "two tensors overlap" : "bytes before a tensor's data belong to none",
            std::nullopt, fmt::format("offset {}{}", end, whose), fmt::format("offset {}", tensor.begin));
      }
      end += padded(tensor.bytes);
      previous = &tensor;
    }
    for (const std::uint32_t i : order) {
      const std::uint64_t needed = data_begin + tensors_[i].begin + tensors_[i].bytes;
      if (tensors_[i].bytes == 0 || needed <= cursor_.size()) continue;
      cursor_.subject.tensor = tensors_[i].name;
      cursor_.refuse(ErrorCode::trunc,
                     "the file ends before a tensor does; it was not written or fetched in full",
                     cursor_.size(), in_bytes(needed), in_bytes(cursor_.size()));
    }
    cursor_.subject = {};
    const std::uint64_t last = data_begin + end;
    if (cursor_.size() > last) {
      cursor_.refuse(ErrorCode::trail, "bytes after the last tensor belong to none", last,
                     fmt::format("a file of {}", in_bytes(last)),
                     fmt::format("{} after it", in_bytes(cursor_.size() - last)));
    }
  }

  GgufCursor& cursor_;
  std::uint64_t alignment_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::uint32_t> name_begins_;  // a header is shorter than 2^32 bytes
  std::uint64_t all_bytes_ = 0;             // of the tensors so far, padded
};

}  // namespace

GgufTensors read_gguf_tensors(GgufCursor& cursor, std::uint64_t count, std::uint64_t alignment) {
  return TableReader(cursor, count, alignment).read(count);
}

}  // namespace scalevec
