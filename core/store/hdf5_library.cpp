#include <scalevec/core/store/hdf5_library.h>

#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec::hdf5 {
namespace {

// The library is not thread-safe as Debian and most others build it.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// The library's error stack from the outermost call inwards: the cause stands last.
std::string library_message() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_DOWNWARD,
      [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
        auto& message = *static_cast<std::string*>(out);
        if (error->desc != nullptr) message += (message.empty() ? "" : ": ") + std::string(error->desc);
        return 0;
      },
      &text);
  return text.empty() ? "no message" : text;
}

}  // namespace

Visit::Visit() : lock_(library_mutex()) {
  H5open();
  H5Eget_auto2(H5E_DEFAULT, &printer_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Visit::~Visit() {
  // What a thread leaves on its stack of errors when it ends would keep the library from closing.
  H5Eclear2(H5E_DEFAULT);
  H5Eset_auto2(H5E_DEFAULT, printer_, data_);
}

Shared::~Shared() {
  if (file < 0) return;
  const Visit visit;
  H5Fclose(std::exchange(file, H5I_INVALID_HID));
}

Handle::~Handle() {
  const Visit visit;
  close(id);
}

void check_usable(const Shared& shared, std::string_view operation) {
  if (shared.poisoned) {
    fail(ErrorCode::state,
         fmt::format("{}: an earlier HDF5 call on this file failed, so it is not trusted; make it anew",
                     operation),
         {.file = shared.name});
  }
  if (shared.file < 0)
    fail(ErrorCode::state, fmt::format("{}: the file is closed", operation), {.file = shared.name});
}

[[noreturn]] void fail_library(Shared& shared, std::string_view operation, std::string_view object) {
  const std::string message = library_message();
  shared.poisoned = true;
  fail(ErrorCode::io, fmt::format("{} '{}': HDF5 says: {}", operation, object, message),
       {.file = shared.name});
}

hid_t text_type() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  if (type < 0 || H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0) return -1;
  return type;
}

// C strings end at the first zero byte: text that holds one would be cut in silence.
void check_text(std::string_view text, std::string_view name) {
  if (text.find('\0') != std::string_view::npos) {
    fail(ErrorCode::value,
         fmt::format("hdf5: the text for '{}' holds a zero byte, which HDF5 text cannot", name));
  }
}

void write_text_attribute(Shared& shared, hid_t object, std::string_view name, std::string_view value) {
  check_text(value, name);
  const std::string key(name), text(value);
  const Id type(check(shared, text_type(), "hdf5: text type of attribute", name), H5Tclose);
  const Id space(check(shared, H5Screate(H5S_SCALAR), "hdf5: space of attribute", name), H5Sclose);
  const Id made(check(shared, H5Acreate2(object, key.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                      "hdf5: create attribute", name),
                H5Aclose);
  const char* pointer = text.c_str();
  check(shared, H5Awrite(made, type, &pointer), "hdf5: write attribute", name);
}

hid_t dataset_list() {
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  if (list < 0 || H5Pset_obj_track_times(list, false) < 0) return -1;
  return list;
}

void check_link(Shared& shared, hid_t parent, const std::string& name, const std::string& path) {
  const htri_t there = check(shared, H5Lexists(parent, name.c_str(), H5P_DEFAULT), "hdf5: look up", path);
  if (there == 0) fail(ErrorCode::io, fmt::format("hdf5: there is no '{}'", path), {.file = shared.name});
  H5L_info_t info{};
  check(shared, H5Lget_info(parent, name.c_str(), &info, H5P_DEFAULT), "hdf5: look up", path);
  if (info.type != H5L_TYPE_HARD) {
    fail(ErrorCode::format,
         fmt::format("hdf5: '{}' is a link, which may lead to another file; it is not followed", path),
         {.file = shared.name});
  }
}

}  // namespace scalevec::hdf5
