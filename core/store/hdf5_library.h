#pragma once

// Between the sources of hdf5.h only: how the C library is called.

#include <mutex>
#include <string>
#include <string_view>

#include <hdf5.h>

#include <scalevec/core/store/hdf5.h>

namespace scalevec::hdf5 {

struct Shared {
  std::string name;
  hid_t file = H5I_INVALID_HID;
  bool writing = false;
  bool poisoned = false;
  ~Shared();
};

struct Handle {
  hid_t id;
  herr_t (*close)(hid_t);
  ~Handle();
};

/// One visit to the library: serialised, since most builds of it are not thread-safe, and its printing off
/// for that long only, since the host program may use the same library and want its messages.
class Visit {
 public:
  Visit();
  ~Visit();
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  H5E_auto2_t printer_ = nullptr;
  void* data_ = nullptr;
};

void check_usable(const Shared& shared, std::string_view operation);
[[noreturn]] void fail_library(Shared& shared, std::string_view operation, std::string_view object);

/// Any result of the library: negative is failure, and poisons.
template <class Result>
Result check(Shared& shared, Result result, std::string_view operation, std::string_view object) {
  if (result < 0) fail_library(shared, operation, object);
  return result;
}

/// An identifier for one scope: dataspaces, types and property lists alike.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  operator hid_t() const { return id_; }  // NOLINT: stands for the identifier

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// UTF-8 text of variable length; negative on failure.
hid_t text_type();

/// E_VALUE for text that holds a zero byte, which HDF5's cannot.
void check_text(std::string_view text, std::string_view name);
void write_text_attribute(Shared& shared, hid_t object, std::string_view name, std::string_view value);
std::string read_text_attribute(Shared& shared, hid_t object, std::string_view name);

/// Creation of datasets: without the time, so that the same values make the same bytes; negative on failure.
hid_t dataset_list();

/// E_FORMAT for a dataset whose values are not plainly in the file.
void check_storage(Shared& shared, hid_t dataset, const std::string& path);

/// E_IO where there is no `name`; E_FORMAT where it is a link: that would make the library open another file.
void check_link(Shared& shared, hid_t parent, const std::string& name, const std::string& path);

}  // namespace scalevec::hdf5
