#include <algorithm>

#include <fmt/format.h>
#include <hdf5.h>
#include <hdf5_hl.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/hdf5_library.h>

namespace scalevec::hdf5 {
namespace {

constexpr std::uint64_t largest_read = std::uint64_t{4} << 30;

template <class T>
T read_attribute(Shared& shared, hid_t object, std::string_view name, hid_t memory) {
  const std::string key(name);
  const Id found(check(shared, H5Aopen(object, key.c_str(), H5P_DEFAULT), "hdf5: open attribute", name),
                 H5Aclose);
  const Id space(check(shared, H5Aget_space(found), "hdf5: space of attribute", name), H5Sclose);
  if (H5Sget_simple_extent_npoints(space) != 1) {
    fail(ErrorCode::format, fmt::format("hdf5: attribute '{}' is not one value", name),
         {.file = shared.name});
  }
  T value{};
  check(shared, H5Aread(found, memory, &value), "hdf5: read attribute", name);
  return value;
}

[[noreturn]] void refuse(const Shared& shared, const std::string& object, std::string_view what) {
  fail(ErrorCode::format,
       fmt::format("hdf5: '{}' {}; only plain datasets that lie in the file are read", object, what),
       {.file = shared.name});
}

template <class T>
Values read_numbers(Shared& shared, hid_t dataset, hid_t type, std::size_t count, const std::string& path) {
  std::vector<T> values(count);
  if (count > 0) {
    check(shared, H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "hdf5: read", path);
  }
  return values;
}

Values read_text(Shared& shared, hid_t dataset, hid_t space, hid_t stored, std::size_t count,
                 const std::string& path) {
  if (check(shared, H5Tis_variable_str(stored), "hdf5: type of", path) == 0) {
    refuse(shared, path, "holds text of fixed length");
  }
  const Id type(check(shared, text_type(), "hdf5: text type of", path), H5Tclose);
  check(shared, H5Tset_cset(type, H5Tget_cset(stored)), "hdf5: type of", path);
  std::vector<char*> pointers(count, nullptr);
  std::vector<std::string> values(count);
  if (count == 0) return values;
  check(shared, H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), "hdf5: read", path);
  for (std::size_t i = 0; i < count; ++i) {
    if (pointers[i] != nullptr) values[i] = pointers[i];
  }
  H5Dvlen_reclaim(type, space, H5P_DEFAULT, pointers.data());
  return values;
}

}  // namespace

void check_storage(Shared& shared, hid_t dataset, const std::string& path) {
  const Id list(check(shared, H5Dget_create_plist(dataset), "hdf5: layout of", path), H5Pclose);
  const H5D_layout_t layout = H5Pget_layout(list);
  if (layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED && layout != H5D_COMPACT) {
    refuse(shared, path, "is virtual");
  }
  if (check(shared, H5Pget_external_count(list), "hdf5: storage of", path) != 0)
    refuse(shared, path, "is external");
  const int filters = check(shared, H5Pget_nfilters(list), "hdf5: filters of", path);
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    std::size_t count = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(list, static_cast<unsigned>(i), &flags, &count, nullptr, 0, nullptr, nullptr);
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE && filter != H5Z_FILTER_FLETCHER32) {
      refuse(shared, path, "needs a filter plugin");
    }
  }
}

Array Group::read(std::string_view name) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  Shared& shared = *shared_;
  check_usable(shared, "hdf5: read");
  check_link(shared, handle_->id, key, path);
  const Id found(check(shared, H5Dopen2(handle_->id, key.c_str(), H5P_DEFAULT), "hdf5: open dataset", path),
                 H5Dclose);
  check_storage(shared, found, path);
  const Id space(check(shared, H5Dget_space(found), "hdf5: space of", path), H5Sclose);
  const Id type(check(shared, H5Dget_type(found), "hdf5: type of", path), H5Tclose);
  const int rank = check(shared, H5Sget_simple_extent_ndims(space), "hdf5: space of", path);
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  if (rank > 0)
    check(shared, H5Sget_simple_extent_dims(space, extent.data(), nullptr), "hdf5: space of", path);
  const auto points = check(shared, H5Sget_simple_extent_npoints(space), "hdf5: space of", path);
  const auto count = static_cast<std::uint64_t>(points);
  const std::size_t element = std::max<std::size_t>(H5Tget_size(type), sizeof(char*));
  if (count > largest_read / element) refuse(shared, path, "declares more than 4 GiB");

  const std::size_t size = H5Tget_size(type);
  const auto read_as = [&]() -> Values {
    switch (H5Tget_class(type)) {
      case H5T_FLOAT:
        if (size == 8) return read_numbers<double>(shared, found, H5T_NATIVE_DOUBLE, count, path);
        if (size == 4) return read_numbers<float>(shared, found, H5T_NATIVE_FLOAT, count, path);
        break;
      case H5T_INTEGER:
        if (size == 1 && H5Tget_sign(type) == H5T_SGN_NONE) {
          return read_numbers<std::uint8_t>(shared, found, H5T_NATIVE_UINT8, count, path);
        }
        if (size == 8 && H5Tget_sign(type) == H5T_SGN_2) {
          return read_numbers<std::int64_t>(shared, found, H5T_NATIVE_INT64, count, path);
        }
        break;
      case H5T_STRING:
        return read_text(shared, found, space, type, count, path);
      default:
        break;
    }
    refuse(shared, path, "has another element type");
  };
  return {.values = read_as(), .shape = {extent.begin(), extent.end()}};
}

std::string read_text_attribute(Shared& shared, hid_t object, std::string_view name) {
  const std::string key(name);
  const Id found(check(shared, H5Aopen(object, key.c_str(), H5P_DEFAULT), "hdf5: open attribute", name),
                 H5Aclose);
  const Id stored(check(shared, H5Aget_type(found), "hdf5: type of attribute", name), H5Tclose);
  const Id space(check(shared, H5Aget_space(found), "hdf5: space of attribute", name), H5Sclose);
  if (H5Tget_class(stored) != H5T_STRING || H5Tis_variable_str(stored) <= 0 ||
      H5Sget_simple_extent_npoints(space) != 1) {
    fail(ErrorCode::format, fmt::format("hdf5: attribute '{}' is not one text of variable length", name),
         {.file = shared.name});
  }
  char* text = nullptr;
  check(shared, H5Aread(found, stored, &text), "hdf5: read attribute", name);
  std::string value = text == nullptr ? "" : text;
  H5Dvlen_reclaim(stored, space, H5P_DEFAULT, &text);
  return value;
}

std::string Group::text_attribute(std::string_view name) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  return read_text_attribute(*shared_, handle_->id, name);
}

std::int64_t Group::integer_attribute(std::string_view name) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  return read_attribute<std::int64_t>(*shared_, handle_->id, name, H5T_NATIVE_INT64);
}

double Group::real_attribute(std::string_view name) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  return read_attribute<double>(*shared_, handle_->id, name, H5T_NATIVE_DOUBLE);
}

std::vector<std::string> Group::dimensions(std::string_view name) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  Shared& shared = *shared_;
  check_usable(shared, "hdf5: dimensions");
  check_link(shared, handle_->id, key, path);
  const Id found(check(shared, H5Dopen2(handle_->id, key.c_str(), H5P_DEFAULT), "hdf5: open dataset", path),
                 H5Dclose);
  const Id space(check(shared, H5Dget_space(found), "hdf5: space of", path), H5Sclose);
  const int rank = check(shared, H5Sget_simple_extent_ndims(space), "hdf5: space of", path);
  const auto collect = [](hid_t, unsigned, hid_t scale, void* out) -> herr_t {
    char buffer[256] = {};
    if (H5DSget_scale_name(scale, buffer, sizeof buffer) < 0) return -1;
    *static_cast<std::string*>(out) = buffer;
    return 1;
  };
  std::vector<std::string> names(static_cast<std::size_t>(rank));
  for (std::size_t i = 0; i < names.size(); ++i) {
    check(shared, H5DSiterate_scales(found, static_cast<unsigned>(i), nullptr, collect, &names[i]),
          "hdf5: dimensions of", path);
  }
  return names;
}

}  // namespace scalevec::hdf5
