// Datasets that are written and read in pieces.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>
#include <hdf5_hl.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/hdf5_library.h>

namespace scalevec::hdf5 {
namespace {

constexpr std::uint64_t chunk_bytes = 256 << 10, most_chunk_rows = 4096;
static_assert(chunk_bytes == Group::block_rows * Group::tile_bytes);

hid_t memory_type(Number type) {
  return type == Number::f32 ? H5T_NATIVE_FLOAT : type == Number::f64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT64;
}

hid_t file_type(Number type) {
  return type == Number::f32 ? H5T_IEEE_F32LE : type == Number::f64 ? H5T_IEEE_F64LE : H5T_STD_I64LE;
}

std::vector<hsize_t> chunk_of(Number type, const std::vector<hsize_t>& shape) {
  const std::uint64_t size = number_bytes(type);
  std::vector<hsize_t> chunk = shape;
  std::uint64_t width = 1;
  if (shape.size() > 1) width = chunk[1] = std::min<std::uint64_t>(shape[1], Group::tile_bytes / size);
  const std::uint64_t rows = std::min(most_chunk_rows, chunk_bytes / (width * size));
  chunk[0] = std::min<std::uint64_t>(shape[0], rows / Group::block_rows * Group::block_rows);
  return chunk;
}

class Dataset {
 public:
  Dataset(Shared& shared, hid_t parent, const std::string& key, const std::string& path)
      : id(check(shared, H5Dopen2(parent, key.c_str(), H5P_DEFAULT), "hdf5: open dataset", path), H5Dclose),
        space(check(shared, H5Dget_space(id), "hdf5: space of", path), H5Sclose) {}

  Id id, space;
};

// Selects the block in the dataset's space and gives the memory's.
hid_t select(Shared& shared, hid_t space, const Block& block, std::size_t bytes, Number type,
             const std::string& path) {
  const int rank = check(shared, H5Sget_simple_extent_ndims(space), "hdf5: space of", path);
  std::array<hsize_t, 2> extent{0, 1};
  if (rank == 1 || rank == 2) {
    check(shared, H5Sget_simple_extent_dims(space, extent.data(), nullptr), "hdf5: space of", path);
  }
  const bool inside = block.row <= extent[0] && block.rows <= extent[0] - block.row &&
                      block.entry <= extent[1] && block.entries <= extent[1] - block.entry;
  if ((rank != 1 && rank != 2) || !inside || bytes != block.rows * block.entries * number_bytes(type)) {
    fail(ErrorCode::format,
         fmt::format("hdf5: '{}' of {} dimensions, {} x {}, has no rows {} + {}, entries {} + {} in {} bytes",
                     path, rank, extent[0], extent[1], block.row, block.rows, block.entry, block.entries,
                     bytes),
         {.file = shared.name});
  }
  const std::array<hsize_t, 2> start{block.row, block.entry}, count{block.rows, block.entries};
  if (block.rows == 0 || block.entries == 0) {
    check(shared, H5Sselect_none(space), "hdf5: select in", path);
  } else {
    check(shared, H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
          "hdf5: select in", path);
  }
  // Of the same shape: between others the library goes from element to element.
  const hid_t memory = check(shared, H5Screate_simple(rank, count.data(), nullptr), "hdf5: select in", path);
  if (block.rows * block.entries == 0) check(shared, H5Sselect_none(memory), "hdf5: select in", path);
  return memory;
}

}  // namespace

std::size_t number_bytes(Number type) { return type == Number::f32 ? 4 : 8; }

View view(Number type, std::span<const std::byte> bytes) {
  const std::size_t count = bytes.size() / number_bytes(type);
  if (type == Number::f32) return std::span(reinterpret_cast<const float*>(bytes.data()), count);
  if (type == Number::f64) return std::span(reinterpret_cast<const double*>(bytes.data()), count);
  return std::span(reinterpret_cast<const std::int64_t*>(bytes.data()), count);
}

void Group::create(std::string_view name, Number type, const std::vector<std::string>& dimensions,
                   int deflate) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  Shared& shared = *shared_;
  check_usable(shared, "hdf5: create");
  std::vector<hsize_t> shape;
  for (const std::string& dimension : dimensions) {
    const Dataset scale(shared, handle_->id, dimension, path_ + dimension);
    shape.push_back(static_cast<hsize_t>(H5Sget_simple_extent_npoints(scale.space)));
  }
  const Id list(check(shared, dataset_list(), "hdf5: create", path), H5Pclose);
  if (deflate >= 0 && std::ranges::find(shape, 0) == shape.end()) {
    const std::vector<hsize_t> chunk = chunk_of(type, shape);
    check(shared, H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data()), "hdf5: chunks of", path);
    if (deflate > 0) {
      check(shared, H5Pset_shuffle(list), "hdf5: filters of", path);
      check(shared, H5Pset_deflate(list, static_cast<unsigned>(deflate)), "hdf5: filters of", path);
    }
    check(shared, H5Pset_fletcher32(list), "hdf5: filters of", path);
  }
  const Id space(check(shared, H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr),
                       "hdf5: space of", path),
                 H5Sclose);
  const Id made(
      check(shared,
            H5Dcreate2(handle_->id, key.c_str(), file_type(type), space, H5P_DEFAULT, list, H5P_DEFAULT),
            "hdf5: create dataset", path),
      H5Dclose);
  for (std::size_t i = 0; i < dimensions.size(); ++i) {
    const Dataset scale(shared, handle_->id, dimensions[i], path_ + dimensions[i]);
    check(shared, H5DSattach_scale(made, scale.id, static_cast<unsigned>(i)), "hdf5: attach dimension to",
          path);
  }
}

void Group::write_block(std::string_view name, Number type, const Block& block,
                        std::span<const std::byte> bytes) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  Shared& shared = *shared_;
  check_usable(shared, "hdf5: write");
  const Dataset found(shared, handle_->id, key, path);
  const Id memory(select(shared, found.space, block, bytes.size(), type, path), H5Sclose);
  check(shared, H5Dwrite(found.id, memory_type(type), memory, found.space, H5P_DEFAULT, bytes.data()),
        "hdf5: write", path);
}

void Group::read_block(std::string_view name, Number type, const Block& block,
                       std::span<std::byte> bytes) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  Shared& shared = *shared_;
  check_usable(shared, "hdf5: read");
  check_link(shared, handle_->id, key, path);
  const Dataset found(shared, handle_->id, key, path);
  check_storage(shared, found.id, path);
  const Id stored(check(shared, H5Dget_type(found.id), "hdf5: type of", path), H5Tclose);
  if (check(shared, H5Tequal(stored, file_type(type)), "hdf5: type of", path) == 0) {
    fail(ErrorCode::format, fmt::format("hdf5: '{}' has another element type than it should", path),
         {.file = shared.name});
  }
  const Id memory(select(shared, found.space, block, bytes.size(), type, path), H5Sclose);
  check(shared, H5Dread(found.id, memory_type(type), memory, found.space, H5P_DEFAULT, bytes.data()),
        "hdf5: read", path);
}

void Group::describe(std::string_view dataset, std::string_view name, std::string_view value) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  const Dataset found(*shared_, handle_->id, std::string(dataset), path_ + std::string(dataset));
  write_text_attribute(*shared_, found.id, name, value);
}

std::string Group::description(std::string_view dataset, std::string_view name) const {
  const Visit visit;
  const std::string key(dataset), path = path_ + key;
  check_usable(*shared_, "hdf5: attribute");
  check_link(*shared_, handle_->id, key, path);
  const Dataset found(*shared_, handle_->id, key, path);
  return read_text_attribute(*shared_, found.id, name);
}

}  // namespace scalevec::hdf5
