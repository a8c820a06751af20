#include <scalevec/core/store/trace_folder.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/error.h>
#include <scalevec/core/store/crc32c.h>
#include <scalevec/core/store/results_file.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

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

Json links_json(const std::vector<Link>& links) {
  Json out = Json::array();
  for (const Link& link : links) out.push_back({link.branch, link.native});
  return out;
}

std::vector<Link> links_of(const Json& json) {
  std::vector<Link> out;
  for (const Json& link : json) out.push_back({link.at(0), link.at(1)});
  return out;
}

Json site_json(const Site& s) {
  return {{"address", s.address.str()},
          {"native", s.native},
          {"bias", s.bias_native},
          {"role", role_name(s.role)},
          {"kind", statistics_name(s.kind)},
          {"parametrisation", parametrisation_name(s.parametrisation)},
          {"offset", s.offset},
          {"eps", s.eps},
          {"width", s.width},
          {"group", s.group},
          {"consumers", links_json(s.consumers)},
          {"producers", links_json(s.producers)}};
}

Site site_of(const Json& json) {
  using enum Parametrisation;
  Site s;
  s.address = Address::parse(json.at("address").get<std::string>());
  s.native = json.at("native");
  s.bias_native = json.at("bias");
  s.role = parse_role(json.at("role").get<std::string>());
  s.kind =
      value_named(statistics_name, {Statistics::rms, Statistics::layer, Statistics::none}, json.at("kind"));
  s.parametrisation = value_named(parametrisation_name, {plain, offset, magnitude_direction, exponential},
                                  json.at("parametrisation"));
  s.offset = json.at("offset");
  s.eps = json.at("eps");
  s.width = json.at("width");
  s.group = json.at("group");
  s.consumers = links_of(json.at("consumers"));
  s.producers = links_of(json.at("producers"));
  return s;
}

Json shape_json(const TraceHeader& header) {
  Json columns = Json::array(), sites = Json::array();
  for (const TraceColumn& c : header.columns) {
    columns.push_back({{"name", c.name},
                       {"unit", c.unit},
                       {"description", c.description},
                       {"per", trace_per_name(c.per)},
                       {"type", trace_type_name(c.type)}});
  }
  for (const Site& site : header.sites) sites.push_back(site_json(site));
  return {{"columns", columns}, {"sites", sites}};
}

Json manifest_json(const TraceManifest& m) {
  Json more = Json::array(), segments = Json::array(), gaps = Json::array(), resumes = Json::array();
  for (const auto& [name, value] : m.header.run.more) {
    more.push_back({name, std::visit([](const auto& v) { return Json(v); }, value)});
  }
  for (const TraceSegment& s : m.segments) {
    segments.push_back({{"file", s.file},
                        {"sha256", s.sha256},
                        {"bytes", s.bytes},
                        {"rows", s.rows},
                        {"first", s.first},
                        {"last", s.last}});
  }
  for (const TraceGap& g : m.gaps) gaps.push_back({g.first, g.last, g.rows});
  for (const TraceResume& r : m.resumes) resumes.push_back({r.step, r.dropped});
  return {{"version", version},
          {"id", m.id},
          {"created", m.created},
          {"run",
           {{"command", printable(m.header.run.command, 1 << 16)},
            {"torch", m.header.run.torch},
            {"device", m.header.run.device},
            {"seed", m.header.run.seed},
            {"more", more}}},
          {"model_config", m.header.model_config},
          {"shape", shape_json(m.header)},
          {"segments", segments},
          {"gaps", gaps},
          {"resumes", resumes}};
}

TraceManifest manifest_of(const Json& json) {
  using Column = TraceColumn;
  if (json.at("version") != version) throw std::invalid_argument("another version");
  TraceManifest m{.id = json.at("id"),
                  .created = json.at("created"),
                  .header = {},
                  .segments = {},
                  .gaps = {},
                  .resumes = {}};
  const Json& run = json.at("run");
  m.header.run = {run.at("command"), run.at("torch"), run.at("device"), run.at("seed"), {}};
  for (const Json& entry : run.at("more")) {
    const Json& value = entry.at(1);
    ResultsFile::Attribute attribute = std::numeric_limits<double>::quiet_NaN();  // JSON has null for it
    if (value.is_string()) attribute = value.get<std::string>();
    if (value.is_number_integer()) attribute = value.get<std::int64_t>();
    if (value.is_number_float()) attribute = value.get<double>();
    m.header.run.more.emplace_back(entry.at(0), std::move(attribute));
  }
  m.header.model_config = json.at("model_config");
  for (const Json& c : json.at("shape").at("columns")) {
    m.header.columns.push_back(
        {c.at("name"), c.at("unit"), c.at("description"),
         value_named(trace_per_name, {Column::Per::run, Column::Per::site, Column::Per::channel},
                     c.at("per")),
         value_named(trace_type_name, {Column::Type::f32, Column::Type::f64, Column::Type::i64},
                     c.at("type"))});
  }
  for (const Json& site : json.at("shape").at("sites")) m.header.sites.push_back(site_of(site));
  for (const Json& s : json.at("segments")) {
    m.segments.push_back(
        {s.at("file"), s.at("sha256"), s.at("bytes"), s.at("rows"), s.at("first"), s.at("last")});
  }
  for (const Json& g : json.at("gaps")) m.gaps.push_back({g.at(0), g.at(1), g.at(2)});
  for (const Json& r : json.at("resumes")) m.resumes.push_back({r.at(0), r.at(1)});
  return m;
}

// Two writers of one process share its locks on files.
std::mutex& taken_mutex() {
  static std::mutex mutex;
  return mutex;
}
std::map<std::string, pid_t>& taken() {  // by whom: a forked child has a copy, and no locks
  static std::map<std::string, pid_t> folders;
  return folders;
}

[[noreturn]] void refuse_second(const fs::path& folder, long owner) {
  fail(ErrorCode::state,
       fmt::format(
           "the trace in '{}' is being written by process {}; end that one first, or choose another path",
           printable(folder.string()), owner),
       {.file = folder.string(), .expected = "no other writer", .found = fmt::format("process {}", owner)});
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
  const std::string body =
      manifest_json(manifest).dump(-1, ' ', false, Json::error_handler_t::replace) + "}\n";
  return fmt::format("{}{:08x}{}{}", prefix, crc32c(std::as_bytes(std::span(body))), middle, body);
}

TraceManifest parse_manifest(std::string_view text, const fs::path& file) {
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
    return manifest_of(Json::parse(body.substr(0, body.size() - 2)));
  } catch (const std::exception& error) {
    fail(ErrorCode::format,
         fmt::format("'{}' is of another version of scalevec: {}", printable(file.string()), error.what()),
         {.file = file.string()});
  }
}

bool same_shape(const TraceHeader& a, const TraceHeader& b) { return shape_json(a) == shape_json(b); }

fs::path live_folder(const fs::path& path) { return fs::path(path) += ".live"; }
fs::path trace_path(const fs::path& given) {
  const fs::path path = given.has_filename() ? given : given.parent_path();
  return path.extension() == ".live" ? fs::path(path).replace_extension() : path;
}
fs::path manifest_path(const fs::path& folder) { return folder / "trace.json"; }
fs::path journal_path(const fs::path& folder, std::int64_t number) {
  return folder / fmt::format("journal-{:06}", number);
}
std::string segment_name(std::int64_t number, std::uint32_t rows_crc) {
  return fmt::format("segment-{:06}-{:08x}.h5", number, rows_crc);
}

TraceLock::TraceLock(const fs::path& folder) {
  const fs::path file = folder / "lock";
  const auto refuse = [&](std::string_view what, int error) {
    fail(ErrorCode::io,
         fmt::format("{} '{}': {}. A trace needs a file system with locks: choose a path on a local disk.",
                     what, printable(file.string()), std::generic_category().message(error)),
         {.file = file.string()});
  };
  const auto key_of = [](const struct stat& there) {
    return fmt::format("{}:{}", there.st_dev, there.st_ino);
  };
  const std::lock_guard guard(taken_mutex());
  struct stat there {};
  // Before it is opened: closing it again would give up the lock of the writer that has it.
  if (::stat(file.c_str(), &there) == 0) {
    const auto found = taken().find(key_of(there));
    if (found != taken().end() && found->second == ::getpid()) refuse_second(folder, found->second);
  }
  descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) refuse("opening", errno);
  struct flock region {};
  region.l_type = F_WRLCK;
  region.l_whence = SEEK_SET;
  if (::fcntl(descriptor_, F_SETLK, &region) != 0 || ::fstat(descriptor_, &there) != 0) {
    const int error = errno;
    const bool other = (error == EAGAIN || error == EACCES) && ::fcntl(descriptor_, F_GETLK, &region) == 0;
    ::close(descriptor_);
    if (other) refuse_second(folder, region.l_pid);
    refuse("locking", error);
  }
  key_ = key_of(there);
  taken()[key_] = ::getpid();
}

TraceLock::~TraceLock() {
  const std::lock_guard guard(taken_mutex());
  taken().erase(key_);
  ::close(descriptor_);
}

}  // namespace scalevec
