#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace scalevec::hdf5 {

/// What a dataset holds: one element type, in row-major order. Text is UTF-8 of variable length.
using Values = std::variant<std::vector<double>, std::vector<float>, std::vector<std::int64_t>,
                            std::vector<std::uint8_t>, std::vector<std::string>>;
/// The same without owning: what is written.
using View = std::variant<std::span<const double>, std::span<const float>, std::span<const std::int64_t>,
                          std::span<const std::uint8_t>, std::span<const std::string>>;

/// A dataset as read: an empty shape is a scalar.
struct Array {
  Values values;
  std::vector<std::uint64_t> shape;
};

/// The numbers of datasets that are written and read in pieces.
enum class Number { f32, f64, i64 };
std::size_t number_bytes(Number type);
View view(Number type, std::span<const std::byte> bytes);

/// Rows [row, row + rows) x entries [entry, entry + entries) of a dataset of two dimensions; of one
/// dimension: entry 0, entries 1.
struct Block {
  std::uint64_t row = 0, rows = 0, entry = 0, entries = 1;
};

struct Handle;  // an open HDF5 object
struct Shared;  // what the objects of one file share

/// A group of an HDF5 file; copies name the same group. It keeps the file's state, not the file, alive: after
/// File::close every call is E_STATE.
class Group {
 public:
  /// The group of that name, made where the file is being written; E_IO where it is read and there is none.
  Group group(std::string_view name) const;
  bool has(std::string_view name) const;
  std::vector<std::string> names() const;  // groups and datasets, in the order they were made

  void attribute(std::string_view name, std::string_view value) const;
  void attribute(std::string_view name, std::int64_t value) const;
  void attribute(std::string_view name, double value) const;
  /// A dimension of `size` that columns of this group name: a dataset 0, 1, ... that is an HDF5 dimension
  /// scale.
  void dimension(std::string_view name, std::uint64_t size) const;
  /// A dataset over one or two dimensions of this group, outermost first, its dimension scales attached; no
  /// dimension makes a scalar. E_SHAPE if the number of values is not the product of the dimensions.
  void write(std::string_view name, View values, const std::vector<std::string>& dimensions,
             std::string_view units = {}) const;
  /// A dimension whose entries are not counted but valued, such as steps.
  void dimension(std::string_view name, std::span<const std::int64_t> values) const;
  /// A dataset over dimensions of this group, to be filled by write_block. deflate: 0 to 9, or -1: in one
  /// piece, without checksums; where it is not 0 the bytes are shuffled first. Chunks have a checksum and at
  /// most 256 KiB, so that the library's cache of 1 MiB holds some; their rows are a multiple of
  /// `block_rows`. Blocks that begin and end there (or at the last row) are compressed once; any others are,
  /// for every write, unpacked and packed again.
  void create(std::string_view name, Number type, const std::vector<std::string>& dimensions,
              int deflate) const;
  static constexpr std::uint64_t block_rows = 64, tile_bytes = 4096;  // of a chunk's row, at most
  void write_block(std::string_view name, Number type, const Block& block,
                   std::span<const std::byte> bytes) const;
  /// E_FORMAT unless the dataset has that type and holds that block.
  void read_block(std::string_view name, Number type, const Block& block, std::span<std::byte> bytes) const;
  /// An attribute of a dataset.
  void describe(std::string_view dataset, std::string_view name, std::string_view value) const;
  std::string description(std::string_view dataset, std::string_view name) const;

  /// E_FORMAT where the element type is not one of Values', where the values lie outside of the file, or
  /// where they declare more than 4 GiB.
  Array read(std::string_view name) const;
  std::string text_attribute(std::string_view name) const;
  std::int64_t integer_attribute(std::string_view name) const;
  double real_attribute(std::string_view name) const;
  /// The names of a dataset's dimensions, outermost first; empty text where it has no scale.
  std::vector<std::string> dimensions(std::string_view name) const;

 private:
  friend class File;
  Group(std::shared_ptr<Shared> shared, std::shared_ptr<Handle> handle, std::string path);
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<Handle> handle_;
  std::string path_;
};

/// An HDF5 file behind the C library. Every failure of the library is E_IO with the library's own message;
/// after the first one the file is poisoned: nothing more is written or read, whatever a later call would
/// have answered. Calls from several threads are serialised, in this process, across files. The library
/// prints nothing.
class File {
 public:
  /// A new file that exists in memory only, to be taken as `image()` and written by whoever knows how to
  /// replace a file safely. `name` stands in messages.
  static File in_memory(std::string name);
  /// Writes into an existing file, from its beginning; made safe by whoever gives the name (AtomicFile).
  static File create(const std::filesystem::path& path);
  /// Reads a file. Links that leave a group, external storage, virtual datasets and filter plugins are
  /// refused when met (E_FORMAT): such a file makes its reader open other files, or run code.
  static File open(const std::filesystem::path& path);
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  const Group& root() const { return *root_; }
  /// The bytes of the whole file; E_STATE if any call has failed before.
  std::vector<std::byte> image() const;
  /// Gives the file back; E_IO if the library reports a failure. The destructor does the same in silence.
  void close();

 private:
  explicit File(std::shared_ptr<Shared> shared);
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<Group> root_;
};

}  // namespace scalevec::hdf5
