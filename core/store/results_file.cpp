#include <scalevec/core/store/results_file.h>

#include <chrono>
#include <ctime>
#include <numeric>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>

#ifndef SCALEVEC_VERSION
#error "the build passes SCALEVEC_VERSION"
#endif

namespace scalevec {
namespace {

// What a user typed may not be UTF-8, which readers insist on.
constexpr std::size_t longest_text = 1 << 16;

std::size_t length(const hdf5::View& values) {
  return std::visit([](const auto& span) { return span.size(); }, values);
}

void write_attributes(const hdf5::Group& group, const ResultsFile::Attributes& attributes) {
  for (const auto& [name, value] : attributes) {
    std::visit([&, key = std::string_view(name)](const auto& v) { group.attribute(key, v); }, value);
  }
}

// "q=model.layers.0.self_attn.q_proj.weight k=...": readable, and no second table.
std::string links_text(const std::vector<Link>& links) {
  std::string text;
  for (const Link& link : links) {
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", link.branch, link.native);
  }
  return text;
}

hdf5::Group group_at(const hdf5::Group& root, std::string_view path) {
  hdf5::Group group = root;
  for (std::string_view rest = path; !rest.empty();) {
    const std::size_t slash = rest.find('/');
    group = group.group(rest.substr(0, slash));
    rest = slash == std::string_view::npos ? std::string_view{} : rest.substr(slash + 1);
  }
  return group;
}

}  // namespace

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
}

void write_header(const hdf5::Group& root, const ResultsFile::Header& header, std::string_view created) {
  root.attribute("schema", ResultsFile::schema);
  root.attribute("scalevec", std::string_view(SCALEVEC_VERSION));
  root.attribute("torch", std::string_view(header.torch));
  root.attribute("created", created);
  root.attribute("command", std::string_view(printable(header.command, longest_text)));
  root.attribute("seed", header.seed);
  root.attribute("device", std::string_view(header.device));
  write_attributes(root, header.more);
}

ResultsFile::ResultsFile(std::filesystem::path path, const Header& header, Replace replace)
    : file_(path, replace), image_(hdf5::File::in_memory(path.filename().string())) {
  write_header(image_.root(), header, utc_now());
}

ResultsFile::~ResultsFile() = default;

void ResultsFile::model(std::string_view family, std::string_view source, std::string_view config_json,
                        std::span<const std::string> sha256) {
  const hdf5::Group group = image_.root().group("model");
  group.attribute("family", family);
  group.attribute("source", std::string_view(printable(source, longest_text)));
  const std::string config(config_json);
  group.write("config", std::span<const std::string>(&config, 1), {});
  if (sha256.empty()) return;
  group.dimension("site", sha256.size());
  group.write("sha256", sha256, {"site"});
}

void write_sites(const hdf5::Group& root, std::span<const Site> sites) {
  const auto texts = [&](auto get) {
    std::vector<std::string> values;
    for (const Site& site : sites) values.emplace_back(get(site));
    return values;
  };
  const auto numbers = [&]<class T>(T Site::*member) {
    std::vector<T> values;
    for (const Site& site : sites) values.push_back(site.*member);
    return values;
  };
  const std::vector<std::int64_t> widths = numbers(&Site::width);
  std::vector<std::int64_t> start(sites.size());
  std::exclusive_scan(widths.begin(), widths.end(), start.begin(), std::int64_t{0});
  const auto address = texts([](const Site& s) { return s.address.str(); });
  const auto native = texts([](const Site& s) { return s.native; });
  const auto role = texts([](const Site& s) { return role_name(s.role); });
  const auto kind = texts([](const Site& s) { return statistics_name(s.kind); });
  const auto parametrisation = texts([](const Site& s) { return parametrisation_name(s.parametrisation); });
  const auto consumers = texts([](const Site& s) { return links_text(s.consumers); });
  const auto producers = texts([](const Site& s) { return links_text(s.producers); });
  const std::vector<double> offset = numbers(&Site::offset), eps = numbers(&Site::eps);
  const std::vector<std::int64_t> group_size = numbers(&Site::group);
  write_table(root, "sites", "site",
              {{"address", address},
               {"native", native},
               {"role", role},
               {"kind", kind},
               {"parametrisation", parametrisation},
               {"offset", offset},
               {"eps", eps},
               {"width", widths},
               {"group", group_size},
               {"start", start},
               {"consumers", consumers},
               {"producers", producers}});
}

void ResultsFile::sites(std::span<const Site> sites, const hdf5::View& stored,
                        std::span<const double> effective) {
  std::vector<std::int64_t> channel_site, channel_entry;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    for (std::int64_t j = 0; j < sites[i].width; ++j) {
      channel_site.push_back(static_cast<std::int64_t>(i));
      channel_entry.push_back(j);
    }
  }
  if (channel_site.size() != effective.size() || channel_site.size() != length(stored)) {
    fail(ErrorCode::shape, fmt::format("ResultsFile::sites: the sites have {} channels, but {} stored and {} "
                                       "effective values came; give "
                                       "every vector's values, in the order of the sites",
                                       channel_site.size(), length(stored), effective.size()));
  }
  write_sites(image_.root(), sites);
  table("scales", "channel",
        {{"stored", stored}, {"effective", effective}, {"site", channel_site}, {"entry", channel_entry}});
}

void ResultsFile::sites(std::span<const Site> sites) { write_sites(image_.root(), sites); }

void ResultsFile::channels(const Column& column) {
  image_.root().group("scales").write(column.name, column.values, {"channel"}, column.units);
}

void write_table(const hdf5::Group& root, std::string_view name, const std::string& dimension,
                 const std::vector<Column>& columns, const ResultsFile::Attributes& attributes) {
  const hdf5::Group group = group_at(root, name);
  write_attributes(group, attributes);
  if (columns.empty() || length(columns.front().values) == 0) return;
  if (group.has(dimension)) {
    fail(ErrorCode::dup,
         fmt::format("ResultsFile: '{}' has its columns already; give the table another name", name));
  }
  group.dimension(dimension, length(columns.front().values));
  for (const Column& column : columns) group.write(column.name, column.values, {dimension}, column.units);
}

void ResultsFile::table(std::string_view name, const std::string& dimension,
                        const std::vector<Column>& columns, const Attributes& attributes) {
  write_table(image_.root(), name, dimension, columns, attributes);
}

void ResultsFile::matrix(std::string_view name, const Column& values, std::uint64_t rows,
                         std::uint64_t columns) {
  const hdf5::Group group = group_at(image_.root(), name);
  group.dimension("row", rows);
  group.dimension("column", columns);
  group.write(values.name, values.values, {"row", "column"}, values.units);
}

void ResultsFile::finish() {
  image_.root().attribute("complete", std::int64_t{1});
  file_.append(image_.image());
  file_.commit();
}

}  // namespace scalevec
