#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/site.h>
#include <scalevec/core/store/hdf5.h>

namespace scalevec {

/// One column of a table in a results file. `units` is the dataset's attribute of that name: "nats", "nats /
/// token".
struct Column {
  std::string name;
  hdf5::View values;  // must outlive the call that takes it
  std::string units = {};
};

/// A results file (HDF5, schema 1; docs/results_file.md lists every dataset). It stands under its name whole,
/// or not at all: it is made in memory, written beside its name, synced and renamed by `finish`.
///
/// Tables are groups of columns that share one dimension scale, without compound types, so that h5py, h5dump
/// and xarray (engines h5netcdf and netcdf4) read every dataset.
class ResultsFile {
 public:
  static constexpr std::int64_t schema = 1;
  using Attribute = std::variant<std::string, std::int64_t, double>;
  using Attributes = std::vector<std::pair<std::string, Attribute>>;

  struct Header {
    std::string command;  // what was run, as the user gave it
    std::string torch;    // version
    std::string device;   // "cpu", "cuda:0"
    std::int64_t seed = 0;
    Attributes more = {};  // dtype, threads, ...
  };

  /// Refuses now what `finish` would have to refuse after a long run: E_PATH, see AtomicFile.
  ResultsFile(std::filesystem::path path, const Header& header, Replace replace = Replace::no);
  ~ResultsFile();  // without `finish`: nothing is left
  ResultsFile(const ResultsFile&) = delete;
  ResultsFile& operator=(const ResultsFile&) = delete;

  /// /model: the source's path, the family, its configuration as JSON, and the digest of every vector's base.
  void model(std::string_view family, std::string_view source, std::string_view config_json,
             std::span<const std::string> sha256);
  /// /sites and /scales: one row per vector; values concatenated in that order, `start` of each in
  /// /sites/start. stored: float32 where every vector fits it, else float64. E_SHAPE if the widths do not add
  /// up.
  void sites(std::span<const Site> sites, const hdf5::View& stored, std::span<const double> effective);
  /// /sites alone.
  void sites(std::span<const Site> sites);
  /// /scales/<name>: one more value per channel, such as a saliency. After `sites`.
  void channels(const Column& column);

  /// A table: a group (its parents are made), one dimension, columns over it, attributes of the group. An
  /// empty table makes nothing but the group and its attributes. E_DUP if the group has columns already;
  /// E_SHAPE if the columns' lengths differ.
  void table(std::string_view group, const std::string& dimension, const std::vector<Column>& columns,
             const Attributes& attributes = {});

  /// A matrix: a dataset over the dimensions `row` and `column` of its group (its parents are made). E_SHAPE
  /// unless there are rows x columns values.
  void matrix(std::string_view group, const Column& values, std::uint64_t rows, std::uint64_t columns);

  /// Writes the file under its name. Once, last.
  void finish();

 private:
  AtomicFile file_;
  hdf5::File image_;
};

/// What ResultsFile's members write, for the one file that is too large to be made in memory: a trace.
void write_header(const hdf5::Group& root, const ResultsFile::Header& header, std::string_view created);
void write_table(const hdf5::Group& root, std::string_view group, const std::string& dimension,
                 const std::vector<Column>& columns, const ResultsFile::Attributes& attributes = {});
void write_sites(const hdf5::Group& root, std::span<const Site> sites);
/// "2026-11-22T08:00:00Z".
std::string utc_now();

}  // namespace scalevec
