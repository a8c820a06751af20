#include <scalevec/core/store/trace_manifest.h>

#include <algorithm>
#include <limits>
#include <random>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>
#include <scalevec/core/store/crc32c.h>
#include <scalevec/core/store/results_file.h>

namespace scalevec {
namespace {

using nlohmann::json;

constexpr std::int64_t version = 1;
constexpr std::string_view prefix = R"({"crc32c":")", middle = R"(","trace":)";
constexpr std::size_t digits = 8;

template <class T, std::size_t n>
T value_named(std::string_view (*name_of)(T), const T (&values)[n], const std::string& text) {
  for (const T value : values) {
    if (name_of(value) == text) return value;
  }
  throw std::invalid_argument("unknown name " + text);
}

template <class Items, class Text>
std::string list_text(const Items& items, Text text_of) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ",") + text_of(item);
  return "[" + out + "]";
}

std::string links_text(const std::vector<Link>& links) {
  return list_text(links, [](const Link& link) {
    return fmt::format("[{},{}]", json_quoted(link.branch), json_quoted(link.native));
  });
}

std::string site_text(const Site& s) {
  return fmt::format(
      R"({{"address":{},"native":{},"bias":{},"role":"{}","kind":"{}","parametrisation":"{}","offset":{},"eps":{})"
      R"(,"width":{},"group":{},"consumers":{},"producers":{}}})",
      json_quoted(s.address.str()), json_quoted(s.native), json_quoted(s.bias_native), role_name(s.role),
      statistics_name(s.kind), parametrisation_name(s.parametrisation), json_number(s.offset),
      json_number(s.eps), s.width, s.group, links_text(s.consumers), links_text(s.producers));
}

std::string column_text(const TraceColumn& c) {
  return fmt::format(R"({{"name":{},"unit":{},"description":{},"per":"{}","type":"{}"}})",
                     json_quoted(c.name), json_quoted(c.unit), json_quoted(c.description),
                     trace_per_name(c.per), trace_type_name(c.type));
}

std::string shape_text(const TraceHeader& header) {
  return fmt::format(R"({{"columns":{},"sites":{}}})", list_text(header.columns, column_text),
                     list_text(header.sites, site_text));
}

std::string attribute_text(const std::pair<std::string, ResultsFile::Attribute>& entry) {
  struct Text {
    std::string operator()(const std::string& v) const { return json_quoted(v); }
    std::string operator()(std::int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return json_number(v); }
  };
  return fmt::format("[{},{}]", json_quoted(entry.first), std::visit(Text{}, entry.second));
}

std::string run_text(const ResultsFile::Header& run) {
  return fmt::format(R"({{"command":{},"torch":{},"device":{},"seed":{},"more":{}}})",
                     json_quoted(printable(run.command, 1 << 16)), json_quoted(run.torch),
                     json_quoted(run.device), run.seed, list_text(run.more, attribute_text));
}

std::string segment_text(const TraceSegment& s) {
  return fmt::format(R"({{"file":{},"sha256":{},"bytes":{},"rows":{},"first":{},"last":{}}})",
                     json_quoted(s.file), json_quoted(s.sha256), s.bytes, s.rows, s.first, s.last);
}

std::string body_of(const TraceManifest& m) {
  return fmt::format(
      R"({{"version":{},"id":{},"created":{},"run":{},"model_config":{},"shape":{},"segments":{},"gaps":{},"resumes":{}}})",
      version, json_quoted(m.id), json_quoted(m.created), run_text(m.header.run),
      json_quoted(m.header.model_config), shape_text(m.header), list_text(m.segments, segment_text),
      list_text(m.gaps, [](const TraceGap& g) { return fmt::format("[{},{},{}]", g.first, g.last, g.rows); }),
      list_text(m.resumes, [](const TraceResume& r) { return fmt::format("[{},{}]", r.step, r.dropped); }));
}

std::vector<Link> links_of(const json& list) {
  std::vector<Link> out;
  for (const json& link : list) out.push_back({link.at(0), link.at(1)});
  return out;
}

Site site_of(const json& fields) {
  using enum Parametrisation;
  Site s;
  s.address = Address::parse(fields.at("address").get<std::string>());
  s.native = fields.at("native");
  s.bias_native = fields.at("bias");
  s.role = parse_role(fields.at("role").get<std::string>());
  s.kind =
      value_named(statistics_name, {Statistics::rms, Statistics::layer, Statistics::none}, fields.at("kind"));
  s.parametrisation = value_named(parametrisation_name, {plain, offset, magnitude_direction, exponential},
                                  fields.at("parametrisation"));
  s.offset = fields.at("offset");
  s.eps = fields.at("eps");
  s.width = fields.at("width");
  s.group = fields.at("group");
  s.consumers = links_of(fields.at("consumers"));
  s.producers = links_of(fields.at("producers"));
  return s;
}

TraceManifest manifest_of(const json& fields) {
  using Column = TraceColumn;
  if (fields.at("version") != version) throw std::invalid_argument("another version");
  TraceManifest m{.id = fields.at("id"),
                  .created = fields.at("created"),
                  .header = {},
                  .segments = {},
                  .gaps = {},
                  .resumes = {}};
  const json& run = fields.at("run");
  m.header.run = {run.at("command"), run.at("torch"), run.at("device"), run.at("seed"), {}};
  for (const json& entry : run.at("more")) {
    const json& value = entry.at(1);
    ResultsFile::Attribute attribute = std::numeric_limits<double>::quiet_NaN();  // JSON has null for it
    if (value.is_string()) attribute = value.get<std::string>();
    if (value.is_number_integer()) attribute = value.get<std::int64_t>();
    if (value.is_number_float()) attribute = value.get<double>();
    m.header.run.more.emplace_back(entry.at(0), std::move(attribute));
  }
  m.header.model_config = fields.at("model_config");
  for (const json& c : fields.at("shape").at("columns")) {
    m.header.columns.push_back(
        {c.at("name"), c.at("unit"), c.at("description"),
         value_named(trace_per_name, {Column::Per::run, Column::Per::site, Column::Per::channel},
                     c.at("per")),
         value_named(trace_type_name, {Column::Type::f32, Column::Type::f64, Column::Type::i64},
                     c.at("type"))});
  }
  for (const json& site : fields.at("shape").at("sites")) m.header.sites.push_back(site_of(site));
  for (const json& s : fields.at("segments")) {
    m.segments.push_back(
        {s.at("file"), s.at("sha256"), s.at("bytes"), s.at("rows"), s.at("first"), s.at("last")});
  }
  for (const json& g : fields.at("gaps")) m.gaps.push_back({g.at(0), g.at(1), g.at(2)});
  for (const json& r : fields.at("resumes")) m.resumes.push_back({r.at(0), r.at(1)});
  return m;
}

}  // namespace

std::int64_t TraceManifest::last_step(std::int64_t otherwise) const {
  if (!segments.empty()) otherwise = std::max(otherwise, segments.back().last);
  if (!gaps.empty()) otherwise = std::max(otherwise, gaps.back().last);
  return otherwise;
}

TraceManifest new_manifest(const TraceHeader& header) {
  std::random_device random;
  return {.id = fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random()),
          .created = utc_now(),
          .header = header,
          .segments = {},
          .gaps = {},
          .resumes = {}};
}

std::string manifest_text(const TraceManifest& manifest) {
  const std::string body = body_of(manifest) + "}\n";
  return fmt::format("{}{:08x}{}{}", prefix, crc32c(std::as_bytes(std::span(body))), middle, body);
}

TraceManifest parse_manifest(std::string_view text, const std::filesystem::path& file) {
  const std::size_t body_at = prefix.size() + digits + middle.size();
  const auto damaged = [&](std::string_view what) {
    fail(ErrorCode::state, fmt::format("'{}' is damaged: {}", printable(file.string()), what),
         {.file = file.string()});
  };
  if (text.size() < body_at + 2 || !text.starts_with(prefix) ||
      text.substr(prefix.size() + digits, middle.size()) != middle) {
    damaged("it is no table of contents of a trace");
  }
  const std::string_view body = text.substr(body_at);
  if (fmt::format("{:08x}", crc32c(std::as_bytes(std::span(body)))) != text.substr(prefix.size(), digits)) {
    damaged("its checksum is another");
  }
  try {
    return manifest_of(parse_json(body.substr(0, body.size() - 2), file.string(), {.bytes = body.size()}));
  } catch (const std::exception& error) {
    fail(ErrorCode::format,
         fmt::format("'{}' is of another version of scalevec: {}", printable(file.string()), error.what()),
         {.file = file.string()});
  }
}

bool same_shape(const TraceHeader& a, const TraceHeader& b) { return shape_text(a) == shape_text(b); }

}  // namespace scalevec
