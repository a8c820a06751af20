#include <scalevec/edits/verb.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// The only argument, of the type that is expected.
template <class T>
const T& only(const Arguments& arguments, std::string_view verb, std::string_view name,
              std::string_view expected) {
  const auto found = arguments.find(name);
  const T* value = found == arguments.end() ? nullptr : std::get_if<T>(&found->second);
  if (value == nullptr || arguments.size() != 1) {
    std::string got;
    for (const auto& [key, unused] : arguments) got += (got.empty() ? "" : ", ") + printable(key);
    fail(ErrorCode::schema,
         fmt::format("'{}' takes one argument, `{}`: {}; it got {}", verb, name, expected,
                     got.empty() ? "none" : got),
         {.key = std::string(verb), .expected = std::string(name), .found = got.empty() ? "none" : got});
  }
  return *value;
}

double number(const Arguments& arguments, std::string_view name) {
  return std::get<double>(arguments.find(name)->second);
}
const std::string& word(const Arguments& arguments) {
  return std::get<std::string>(arguments.find("to")->second);
}

double mean(std::span<const double> values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

void check_set(const Arguments& arguments) {
  const auto values = arguments.find("values");
  if (values == arguments.end()) {
    only<double>(arguments, "set", "value", "a number, or `values`, one for each channel");
  } else if (arguments.size() != 1 || values->second.index() < 2) {
    only<std::vector<double>>(arguments, "set", "values",
                              "one number for each channel, and no `value` beside it");
  }
}

void check_ablate(const Arguments& arguments) {
  const std::string& to = only<std::string>(arguments, "ablate", "to", "zero, one or mean");
  if (to != "zero" && to != "one" && to != "mean") {
    fail(ErrorCode::value, fmt::format("ablate to '{}': expected zero, one or mean", printable(to)),
         {.key = "to", .expected = "zero, one or mean", .found = to});
  }
}

constexpr std::array<Verb, 3> table{{
    {"rescale", "rescale FACTOR",
     [](const Arguments& arguments) { only<double>(arguments, "rescale", "factor", "a number"); }, nullptr,
     [](double current, double, const Arguments& arguments) { return current * number(arguments, "factor"); },
     [](const Arguments& arguments) { return fmt::format("rescale by {}", number(arguments, "factor")); }},
    {"set", "set VALUE", check_set, nullptr,
     [](double, double, const Arguments& arguments) { return number(arguments, "value"); },
     [](const Arguments& arguments) {
       const bool one = arguments.find("value") != arguments.end();
       return one ? fmt::format("set to {}", number(arguments, "value"))
                  : std::string("set channel by channel");
     }},
    {"ablate", "ablate [zero|one|mean]", check_ablate,
     [](std::span<const double> effective, const Arguments& arguments) {
       return word(arguments) == "mean" ? std::optional(mean(effective)) : std::nullopt;
     },
     [](double, double gathered, const Arguments& arguments) {
       return word(arguments) == "mean" ? gathered : word(arguments) == "one" ? 1.0 : 0.0;
     },
     [](const Arguments& arguments) { return fmt::format("ablate to {}", word(arguments)); }},
}};

[[noreturn]] void refuse_value(std::string_view address, std::int64_t channel, const std::string& found,
                               const std::string& expected, std::string_view way_out) {
  fail(ErrorCode::value,
       fmt::format("channel {} of '{}' would become {}; expected {}. {}", channel, address, found, expected,
                   way_out),
       {.tensor = std::string(address), .index = channel, .expected = expected, .found = found});
}

double largest(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return 65504.0;
    case DType::bf16:
      return 0x1.FEp127;
    case DType::f32:
      return 0x1.FFFFFEp127;
    default:
      return 0x1.FFFFFFFFFFFFFp1023;
  }
}

// The values that a file keeps: they were rounded when they were first written, so that replaying moves bits.
VerbReport write_stored(StoredVector& vector, std::span<const std::int64_t> channels,
                        const std::vector<std::byte>& stored, std::string_view address, Allow allow) {
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  if (stored.size() != channels.size() * size) {
    const std::string expected =
        fmt::format("{} bytes ({} x {})", channels.size() * size, channels.size(), dtype_name(vector.dtype));
    fail(ErrorCode::shape,
         fmt::format("set: '{}' got {} bytes of values; expected {}", address, stored.size(), expected),
         {.tensor = std::string(address),
          .expected = expected,
          .found = fmt::format("{} bytes", stored.size())});
  }
  const std::vector<double> values = decode(vector.dtype, stored);
  VerbReport report{.selected = static_cast<std::int64_t>(channels.size())};
  for (std::size_t i = 0; i < channels.size(); ++i) {
    if (!std::isfinite(values[i]) && !allow.non_finite) {
      refuse_value(address, channels[i], fmt::format("{}", values[i]), "a finite value",
                   "If that is meant: allow_non_finite, which the command line does not offer.");
    }
    std::byte* place = vector.bytes.data() + static_cast<std::size_t>(channels[i]) * size;
    report.changed += std::memcmp(place, stored.data() + i * size, size) != 0;
    std::memcpy(place, stored.data() + i * size, size);
  }
  return report;
}

}  // namespace

std::int64_t StoredVector::width() const {
  return static_cast<std::int64_t>(bytes.size() / scale_dtype_bytes(dtype));
}

std::vector<double> StoredVector::effective() const {
  std::vector<double> values = decode(dtype, bytes);
  // Adding 0.0 would turn -0.0 into +0.0.
  if (offset != 0.0) {
    for (double& value : values) value += offset;
  }
  return values;
}

std::string StoredVector::digest() const { return vector_digest(dtype, width(), offset, bytes); }

std::vector<std::byte> StoredVector::at(std::span<const std::int64_t> channels) const {
  const std::size_t size = scale_dtype_bytes(dtype);
  std::vector<std::byte> out(channels.size() * size);
  for (std::size_t i = 0; i < channels.size(); ++i) {
    std::memcpy(out.data() + i * size, bytes.data() + static_cast<std::size_t>(channels[i]) * size, size);
  }
  return out;
}

void StoredVector::put(std::span<const std::int64_t> channels, std::span<const std::byte> stored) {
  const std::size_t size = scale_dtype_bytes(dtype);
  for (std::size_t i = 0; i < channels.size(); ++i) {
    std::memcpy(bytes.data() + static_cast<std::size_t>(channels[i]) * size, stored.data() + i * size, size);
  }
}

const Verb& find_verb(std::string_view name) {
  const auto row =
      std::find_if(table.begin(), table.end(), [&](const Verb& verb) { return verb.name == name; });
  if (row != table.end()) return *row;
  std::string known;
  for (const Verb& verb : table) known += fmt::format("{}{}", known.empty() ? "" : ", ", verb.name);
  fail(ErrorCode::schema, fmt::format("no verb is named '{}'; the verbs are {}", printable(name), known),
       {.key = std::string(name), .expected = known, .found = std::string(name)});
}

VerbReport write_effective(StoredVector& vector, std::span<const std::int64_t> channels,
                           std::span<const double> asked, std::string_view address, Allow allow) {
  if (asked.size() != channels.size()) {
    fail(ErrorCode::shape,
         fmt::format("set: '{}' got {} values for {} selected channels", address, asked.size(),
                     channels.size()),
         {.tensor = std::string(address),
          .expected = fmt::format("{} values", channels.size()),
          .found = fmt::format("{} values", asked.size())});
  }
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  VerbReport report{.selected = static_cast<std::int64_t>(channels.size())};
  const std::vector<double> before = vector.effective();
  std::array<std::byte, 8> buffer;
  const std::span<std::byte> rounded = std::span(buffer).first(size);
  for (std::size_t i = 0; i < channels.size(); ++i) {
    const std::span<std::byte> place =
        std::span(vector.bytes).subspan(static_cast<std::size_t>(channels[i]) * size, size);
    const double current = before[static_cast<std::size_t>(channels[i])];
    if (!std::isfinite(asked[i]) && !allow.non_finite) {
      refuse_value(address, channels[i], fmt::format("{}", asked[i]), "a finite value",
                   "If that is meant: allow_non_finite, which the command line does not offer.");
    }
    // Taking the offset off again would change the bits of a stored value far below the offset's ulp.
    if (asked[i] == current || (std::isnan(asked[i]) && std::isnan(current))) continue;
    // Sign and payload of a NaN that arithmetic makes differ between processors.
    const double value =
        std::isnan(asked[i]) ? std::numeric_limits<double>::quiet_NaN() : asked[i] - vector.offset;
    encode(vector.dtype, value, rounded);
    const double stored = decode(vector.dtype, rounded)[0];
    if (std::isfinite(asked[i]) && !std::isfinite(stored)) {
      refuse_value(address, channels[i], fmt::format("{}", asked[i]),
                   fmt::format("at most {} in {}", largest(vector.dtype), dtype_name(vector.dtype)),
                   "Set a smaller value, or convert the model to a wider dtype.");
    }
    if (value != 0.0 && stored == 0.0 && vector.offset == 0.0) {
      refuse_value(address, channels[i], fmt::format("{}", asked[i]),
                   fmt::format("0, or what {} does not round to it", dtype_name(vector.dtype)),
                   "What sets a value to 0 is ablate; here it would happen unsaid.");
    }
    if (std::isfinite(asked[i])) {
      report.largest_rounding =
          std::max(report.largest_rounding, std::abs(asked[i] - (vector.offset + stored)));
    }
    if (std::equal(rounded.begin(), rounded.end(), place.begin())) {
      ++report.lost;
    } else {
      ++report.changed;
      std::copy(rounded.begin(), rounded.end(), place.begin());
    }
  }
  return report;
}

VerbReport run_verb(const Verb& verb, const Arguments& arguments, StoredVector& vector,
                    std::span<const std::int64_t> channels, std::optional<double> gathered,
                    std::string_view address, Allow allow) {
  verb.check(arguments);
  if (const auto values = arguments.find("values"); values != arguments.end()) {
    if (const auto* stored = std::get_if<std::vector<std::byte>>(&values->second)) {
      return write_stored(vector, channels, *stored, address, allow);
    }
    return write_effective(vector, channels, std::get<std::vector<double>>(values->second), address, allow);
  }
  const std::vector<double> effective = vector.effective();
  if (!gathered && verb.gather != nullptr) gathered = verb.gather(effective, arguments);
  std::vector<double> asked(channels.size());
  for (std::size_t i = 0; i < channels.size(); ++i) {
    asked[i] =
        verb.asked(effective[static_cast<std::size_t>(channels[i])], gathered.value_or(0.0), arguments);
  }
  return write_effective(vector, channels, asked, address, allow);
}

}  // namespace scalevec
