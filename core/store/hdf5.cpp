#include <scalevec/core/store/hdf5.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>
#include <hdf5_hl.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/hdf5_library.h>

namespace scalevec::hdf5 {
namespace {

hid_t memory_type(const View& values) {
  struct Pick {
    hid_t operator()(std::span<const double>) const { return H5T_NATIVE_DOUBLE; }
    hid_t operator()(std::span<const float>) const { return H5T_NATIVE_FLOAT; }
    hid_t operator()(std::span<const std::int64_t>) const { return H5T_NATIVE_INT64; }
    hid_t operator()(std::span<const std::uint8_t>) const { return H5T_NATIVE_UINT8; }
    hid_t operator()(std::span<const std::string>) const { return H5I_INVALID_HID; }
  };
  return std::visit(Pick{}, values);
}

hid_t file_type(const View& values) {
  struct Pick {
    hid_t operator()(std::span<const double>) const { return H5T_IEEE_F64LE; }
    hid_t operator()(std::span<const float>) const { return H5T_IEEE_F32LE; }
    hid_t operator()(std::span<const std::int64_t>) const { return H5T_STD_I64LE; }
    hid_t operator()(std::span<const std::uint8_t>) const { return H5T_STD_U8LE; }
    hid_t operator()(std::span<const std::string>) const { return H5I_INVALID_HID; }
  };
  return std::visit(Pick{}, values);
}

template <class T>
void write_attribute(Shared& shared, hid_t object, std::string_view name, T value, hid_t stored,
                     hid_t memory) {
  const std::string key(name);
  const Id space(check(shared, H5Screate(H5S_SCALAR), "hdf5: space of attribute", name), H5Sclose);
  const Id made(check(shared, H5Acreate2(object, key.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT),
                      "hdf5: create attribute", name),
                H5Aclose);
  check(shared, H5Awrite(made, memory, &value), "hdf5: write attribute", name);
}

}  // namespace

Group::Group(std::shared_ptr<Shared> shared, std::shared_ptr<Handle> handle, std::string path)
    : shared_(std::move(shared)), handle_(std::move(handle)), path_(std::move(path)) {}

Group Group::group(std::string_view name) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  check_usable(*shared_, "hdf5: group");
  const bool make = shared_->writing && check(*shared_, H5Lexists(handle_->id, key.c_str(), H5P_DEFAULT),
                                              "hdf5: look up", path) == 0;
  hid_t id = H5I_INVALID_HID;
  if (make) {
    const Id list(check(*shared_, H5Pcreate(H5P_GROUP_CREATE), "hdf5: create group", path), H5Pclose);
    const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    check(*shared_, H5Pset_link_creation_order(list, order), "hdf5: create group", path);
    check(*shared_, H5Pset_attr_creation_order(list, order), "hdf5: create group", path);
    id = check(*shared_, H5Gcreate2(handle_->id, key.c_str(), H5P_DEFAULT, list, H5P_DEFAULT),
               "hdf5: create group", path);
  } else {
    check_link(*shared_, handle_->id, key, path);
    id = check(*shared_, H5Gopen2(handle_->id, key.c_str(), H5P_DEFAULT), "hdf5: open group", path);
  }
  return Group(shared_, std::make_shared<Handle>(id, H5Gclose), path + "/");
}

bool Group::has(std::string_view name) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: has");
  return check(*shared_, H5Lexists(handle_->id, std::string(name).c_str(), H5P_DEFAULT), "hdf5: look up",
               path_ + std::string(name)) > 0;
}

std::vector<std::string> Group::names() const {
  const Visit visit;
  check_usable(*shared_, "hdf5: names");
  std::vector<std::string> found;
  const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  const Id list(check(*shared_, H5Gget_create_plist(handle_->id), "hdf5: list", path_), H5Pclose);
  unsigned order = 0;
  check(*shared_, H5Pget_link_creation_order(list, &order), "hdf5: list", path_);
  const H5_index_t index = (order & H5P_CRT_ORDER_INDEXED) != 0 ? H5_INDEX_CRT_ORDER : H5_INDEX_NAME;
  check(*shared_, H5Literate(handle_->id, index, H5_ITER_INC, nullptr, collect, &found), "hdf5: list", path_);
  return found;
}

void Group::attribute(std::string_view name, std::string_view value) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  write_text_attribute(*shared_, handle_->id, name, value);
}

void Group::attribute(std::string_view name, std::int64_t value) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  write_attribute(*shared_, handle_->id, name, value, H5T_STD_I64LE, H5T_NATIVE_INT64);
}

void Group::attribute(std::string_view name, double value) const {
  const Visit visit;
  check_usable(*shared_, "hdf5: attribute");
  write_attribute(*shared_, handle_->id, name, value, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE);
}

void Group::dimension(std::string_view name, std::uint64_t size) const {
  std::vector<std::int64_t> entries(size);
  std::iota(entries.begin(), entries.end(), std::int64_t{0});
  dimension(name, entries);
}

void Group::dimension(std::string_view name, std::span<const std::int64_t> values) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  check_usable(*shared_, "hdf5: dimension");
  const hsize_t extent = values.size();
  const Id list(check(*shared_, dataset_list(), "hdf5: dimension", path), H5Pclose);
  if (extent > 0) {  // with a checksum, that only chunks have
    const hsize_t chunk = std::min<hsize_t>(extent, 4096);
    check(*shared_, H5Pset_chunk(list, 1, &chunk), "hdf5: dimension", path);
    check(*shared_, H5Pset_fletcher32(list), "hdf5: dimension", path);
  }
  const Id space(check(*shared_, H5Screate_simple(1, &extent, nullptr), "hdf5: dimension", path), H5Sclose);
  const Id made(
      check(*shared_,
            H5Dcreate2(handle_->id, key.c_str(), H5T_STD_I64LE, space, H5P_DEFAULT, list, H5P_DEFAULT),
            "hdf5: create dimension", path),
      H5Dclose);
  check(*shared_, H5Dwrite(made, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
        "hdf5: write dimension", path);
  check(*shared_, H5DSset_scale(made, key.c_str()), "hdf5: make dimension scale", path);
}

void Group::write(std::string_view name, View values, const std::vector<std::string>& dimensions,
                  std::string_view units) const {
  const Visit visit;
  const std::string key(name), path = path_ + key;
  check_usable(*shared_, "hdf5: write");
  Shared& shared = *shared_;

  std::vector<std::unique_ptr<Id>> scales;
  std::vector<hsize_t> shape;
  hsize_t product = 1;
  for (const std::string& dimension : dimensions) {
    scales.push_back(std::make_unique<Id>(check(shared, H5Dopen2(handle_->id, dimension.c_str(), H5P_DEFAULT),
                                                "hdf5: dimension of " + path, dimension),
                                          H5Dclose));
    const Id space(check(shared, H5Dget_space(*scales.back()), "hdf5: dimension", dimension), H5Sclose);
    shape.push_back(static_cast<hsize_t>(H5Sget_simple_extent_npoints(space)));
    product *= shape.back();
  }
  const std::size_t count = std::visit([](const auto& span) { return span.size(); }, values);
  if (count != product) {
    fail(ErrorCode::shape,
         fmt::format(
             "hdf5: write '{}': {} values do not fill dimensions of {}; give as many as the product of the "
             "dimensions",
             path, count, fmt::join(shape, " x ")),
         {.file = shared.name});
  }

  const auto* text = std::get_if<std::span<const std::string>>(&values);
  std::vector<const char*> pointers;
  if (text != nullptr) {
    for (const std::string& entry : *text) {
      check_text(entry, path);
      pointers.push_back(entry.c_str());
    }
  }
  const Id text_id(check(shared, text_type(), "hdf5: text type of", path), H5Tclose);
  const hid_t stored = text != nullptr ? static_cast<hid_t>(text_id) : file_type(values);
  const Id space(
      check(shared,
            shape.empty() ? H5Screate(H5S_SCALAR)
                          : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr),
            "hdf5: space of", path),
      H5Sclose);
  const Id list(check(shared, dataset_list(), "hdf5: create dataset", path), H5Pclose);
  const Id made(
      check(shared, H5Dcreate2(handle_->id, key.c_str(), stored, space, H5P_DEFAULT, list, H5P_DEFAULT),
            "hdf5: create dataset", path),
      H5Dclose);
  if (text != nullptr) {
    check(shared, H5Dwrite(made, text_id, H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), "hdf5: write",
          path);
  } else {
    const void* data =
        std::visit([](const auto& span) { return static_cast<const void*>(span.data()); }, values);
    check(shared, H5Dwrite(made, memory_type(values), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "hdf5: write",
          path);
  }
  for (std::size_t i = 0; i < scales.size(); ++i) {
    check(shared, H5DSattach_scale(made, *scales[i], static_cast<unsigned>(i)), "hdf5: attach dimension to",
          path);
  }
  if (!units.empty()) write_text_attribute(shared, made, "units", units);
}

File::File(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {
  const Visit visit;
  const hid_t id = check(*shared_, H5Gopen2(shared_->file, "/", H5P_DEFAULT), "hdf5: open", "/");
  root_.reset(new Group(shared_, std::make_shared<Handle>(id, H5Gclose), "/"));
}

namespace {

hid_t ordered_file_list(Shared& shared) {
  const hid_t list = check(shared, H5Pcreate(H5P_FILE_CREATE), "hdf5: create", shared.name);
  const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
  check(shared, H5Pset_link_creation_order(list, order), "hdf5: create", shared.name);
  check(shared, H5Pset_attr_creation_order(list, order), "hdf5: create", shared.name);
  return list;
}

}  // namespace

File File::in_memory(std::string name) {
  const Visit visit;
  auto shared = std::make_shared<Shared>(Shared{.name = std::move(name), .writing = true});
  const Id access(check(*shared, H5Pcreate(H5P_FILE_ACCESS), "hdf5: create", shared->name), H5Pclose);
  const Id create(ordered_file_list(*shared), H5Pclose);
  check(*shared, H5Pset_fapl_core(access, std::size_t{1} << 20, /*backing_store=*/false), "hdf5: create",
        shared->name);
  check(*shared, H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "hdf5: create", shared->name);
  // The library takes two files in memory of one name for one file.
  static std::uint64_t made = 0;
  const std::string unique = fmt::format("{}#{}", shared->name, ++made);
  shared->file =
      check(*shared, H5Fcreate(unique.c_str(), H5F_ACC_TRUNC, create, access), "hdf5: create", shared->name);
  return File(std::move(shared));
}

File File::create(const std::filesystem::path& path) {
  const Visit visit;
  auto shared = std::make_shared<Shared>(Shared{.name = path.string(), .writing = true});
  const Id access(check(*shared, H5Pcreate(H5P_FILE_ACCESS), "hdf5: create", shared->name), H5Pclose);
  const Id create(ordered_file_list(*shared), H5Pclose);
  check(*shared, H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "hdf5: create", shared->name);
  shared->file = check(*shared, H5Fcreate(shared->name.c_str(), H5F_ACC_TRUNC, create, access),
                       "hdf5: create", shared->name);
  return File(std::move(shared));
}

File File::open(const std::filesystem::path& path) {
  const Visit visit;
  auto shared = std::make_shared<Shared>(Shared{.name = path.string()});
  const Id access(check(*shared, H5Pcreate(H5P_FILE_ACCESS), "hdf5: open", shared->name), H5Pclose);
  check(*shared, H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "hdf5: open", shared->name);
  shared->file =
      check(*shared, H5Fopen(shared->name.c_str(), H5F_ACC_RDONLY, access), "hdf5: open", shared->name);
  return File(std::move(shared));
}

File::File(File&&) noexcept = default;

File& File::operator=(File&& other) noexcept {
  std::swap(shared_, other.shared_);  // the other's destructor closes what was ours
  std::swap(root_, other.root_);
  return *this;
}

File::~File() {
  if (!shared_ || shared_->file < 0) return;
  const Visit visit;
  root_.reset();
  H5Fclose(std::exchange(shared_->file, H5I_INVALID_HID));
}

std::vector<std::byte> File::image() const {
  const Visit visit;
  check_usable(*shared_, "hdf5: image");
  check(*shared_, H5Fflush(shared_->file, H5F_SCOPE_GLOBAL), "hdf5: flush", shared_->name);
  const auto size =
      check(*shared_, H5Fget_file_image(shared_->file, nullptr, 0), "hdf5: image of", shared_->name);
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  check(*shared_, H5Fget_file_image(shared_->file, bytes.data(), bytes.size()), "hdf5: image of",
        shared_->name);
  return bytes;
}

void File::close() {
  const Visit visit;
  check_usable(*shared_, "hdf5: close");
  root_.reset();
  check(*shared_, H5Fclose(std::exchange(shared_->file, H5I_INVALID_HID)), "hdf5: close", shared_->name);
}

}  // namespace scalevec::hdf5
