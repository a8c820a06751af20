#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <hdf5.h>
#include <support/errors.h>
#include <support/temporary_folder.h>

#include <scalevec/core/store/hdf5.h>

#include <support/check.h>

using namespace scalevec;
using scalevec::testing::error_of;
using scalevec::testing::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

void put(const fs::path& path, const std::vector<std::byte>& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

const std::vector<double> doubles{0.1, -2.0, 1e300};
const std::vector<float> floats{0.5f, 1.5f, -3.0f, 4.0f, 5.0f, 6.0f};
const std::vector<std::int64_t> integers{-1, 1LL << 60};
const std::vector<std::uint8_t> bytes{0, 255, 7};
const std::vector<std::string> texts{"plain", "", "gr\xC3\xBC\xC3\x9F \xF0\x9F\x99\x82"};

hdf5::File sample() {
  hdf5::File file = hdf5::File::in_memory("sample.h5");
  const hdf5::Group root = file.root();
  root.attribute("name", std::string_view("gr\xC3\xBC\xC3\x9F"));
  root.attribute("count", std::int64_t{-7});
  root.attribute("real", 0.1);
  const hdf5::Group group = root.group("z").group("inner");
  group.dimension("row", 3);
  group.dimension("two", 2);
  group.write("d", doubles, {"row"}, "nats");
  group.write("c", floats, {"row", "two"});
  group.write("b", integers, {"two"});
  group.write("a", bytes, {"row"});
  group.write("text", texts, {"row"});
  group.write("scalar", std::span<const std::string>(texts).subspan(2, 1), {});
  root.group("empty");
  return file;
}

template <class T>
std::vector<T> get(const hdf5::Group& group, const char* name, std::vector<std::uint64_t> shape) {
  const hdf5::Array array = group.read(name);
  CHECK(array.shape == shape);
  REQUIRE(std::holds_alternative<std::vector<T>>(array.values));
  return std::get<std::vector<T>>(array.values);
}

// A file made by the C library alone.
template <class Make>
fs::path foreign(const TemporaryFolder& folder, const Make& make) {
  const fs::path path = folder.path() / "foreign.h5";
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  REQUIRE(file >= 0);
  make(file);
  REQUIRE(H5Fclose(file) >= 0);
  return path;
}

hid_t make_dataset(hid_t file, hsize_t size, hid_t list) {
  const hid_t space = H5Screate_simple(1, &size, nullptr);
  const hid_t made = H5Dcreate2(file, "x", H5T_NATIVE_DOUBLE, space, H5P_DEFAULT, list, H5P_DEFAULT);
  H5Sclose(space);
  if (list != H5P_DEFAULT) H5Pclose(list);
  return made;
}

}  // namespace

TEST_CASE("hdf5: what was written is read, with order, dimensions, units and attributes") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "sample.h5";
  put(path, sample().image());
  hdf5::File file = hdf5::File::open(path);
  const hdf5::Group root = file.root();
  CHECK(root.names() == std::vector<std::string>{"z", "empty"});
  CHECK(root.text_attribute("name") == "gr\xC3\xBC\xC3\x9F");
  CHECK(root.integer_attribute("count") == -7);
  CHECK(root.real_attribute("real") == 0.1);
  const hdf5::Group group = root.group("z").group("inner");
  CHECK(group.names() == std::vector<std::string>{"row", "two", "d", "c", "b", "a", "text", "scalar"});
  CHECK(get<double>(group, "d", {3}) == doubles);
  CHECK(get<float>(group, "c", {3, 2}) == floats);
  CHECK(get<std::int64_t>(group, "b", {2}) == integers);
  CHECK(get<std::uint8_t>(group, "a", {3}) == bytes);
  CHECK(get<std::string>(group, "text", {3}) == texts);
  CHECK(get<std::string>(group, "scalar", {}) == std::vector<std::string>{texts[2]});
  CHECK(get<std::int64_t>(group, "row", {3}) == std::vector<std::int64_t>{0, 1, 2});
  CHECK(group.dimensions("c") == std::vector<std::string>{"row", "two"});
  CHECK(group.dimensions("text") == std::vector<std::string>{"row"});
  CHECK(group.has("d"));
  CHECK_FALSE(group.has("e"));
  file.close();
  CHECK(error_of([&] { group.read("d"); }).code == ErrorCode::state);
}

TEST_CASE("hdf5: the library's failures are E_IO with its own words, and poison the file") {
  hdf5::File file = hdf5::File::in_memory("poisoned.h5");
  const hdf5::Group root = file.root();
  root.dimension("row", 3);
  // Our own refusals leave the file as it was.
  CHECK(error_of([&] { root.write("x", integers, {"row"}); }).code == ErrorCode::shape);
  const std::vector<std::string> zero{"a", std::string("b\0c", 3), "d"};
  CHECK(error_of([&] { root.write("t", zero, {"row"}); }).code == ErrorCode::value);
  root.write("x", doubles, {"row"});
  const auto caught = error_of([&] { root.write("x", doubles, {"row"}); });
  CHECK(caught.code == ErrorCode::io);
  CHECK(caught.message.find("name already exists") != std::string::npos);
  CHECK(caught.fields.file == "poisoned.h5");
  CHECK(error_of([&] { root.write("y", doubles, {"row"}); }).code == ErrorCode::state);
  CHECK(error_of([&] { file.image(); }).code == ErrorCode::state);
}

TEST_CASE("hdf5: files that are none, or cut anywhere, are errors of a type") {
  const TemporaryFolder folder;
  CHECK(error_of([&] { hdf5::File::open(folder.path() / "absent.h5"); }).code == ErrorCode::io);
  CHECK(error_of([&] { hdf5::File::open(folder.path()); }).code == ErrorCode::io);
  const std::vector<std::byte> whole = sample().image();
  const fs::path path = folder.path() / "cut.h5";
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    CAPTURE(size);
    put(path, {whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)});
    CHECK(error_of([&] { hdf5::File::open(path).root().group("z").group("inner").read("text"); }).code ==
          ErrorCode::io);
  }
}

TEST_CASE("hdf5: what would open another file or load code is refused") {
  const TemporaryFolder folder;
  const auto refused = [&](const auto& make) {
    const fs::path path = foreign(folder, make);
    return error_of([&] { hdf5::File::open(path).root().read("x"); });
  };
  CHECK(refused([](hid_t file) { H5Lcreate_soft("/elsewhere", file, "x", H5P_DEFAULT, H5P_DEFAULT); }).code ==
        ErrorCode::format);
  CHECK(refused([](hid_t file) {
          H5Lcreate_external("other.h5", "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT);
        }).code == ErrorCode::format);
  CHECK(refused([](hid_t file) {
          const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
          H5Pset_external(list, "/etc/passwd", 0, 32);
          H5Dclose(make_dataset(file, 4, list));
        }).message.find("external") != std::string::npos);
  CHECK(refused([](hid_t file) {
          const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
          const hsize_t size = 4;
          const hid_t space = H5Screate_simple(1, &size, nullptr);
          H5Pset_virtual(list, space, "other.h5", "/x", space);
          H5Sclose(space);
          H5Dclose(make_dataset(file, 4, list));
        }).message.find("virtual") != std::string::npos);
  CHECK(refused([](hid_t file) {
          const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
          const hsize_t chunk = 4;
          H5Pset_chunk(list, 1, &chunk);
          H5Pset_scaleoffset(list, H5Z_SO_FLOAT_DSCALE, 2);
          H5Dclose(make_dataset(file, 4, list));
        }).message.find("plugin") != std::string::npos);
  CHECK(refused([](hid_t file) {
          const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
          const hsize_t chunk = 1024;
          H5Pset_chunk(list, 1, &chunk);
          H5Dclose(make_dataset(file, hsize_t{1} << 50, list));
        }).message.find("4 GiB") != std::string::npos);
  CHECK(refused([](hid_t file) {
          H5Gclose(H5Gcreate2(file, "x", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
        }).code == ErrorCode::io);
}

TEST_CASE("hdf5: the host program's error printing stays as it was") {
  H5E_auto2_t before = nullptr, after = nullptr;
  void *data_before = nullptr, *data_after = nullptr;
  H5Eget_auto2(H5E_DEFAULT, &before, &data_before);
  error_of([] { hdf5::File::open("/nowhere/at/all.h5"); });
  H5Eget_auto2(H5E_DEFAULT, &after, &data_after);
  const bool printed = before != nullptr, same = before == after;
  CHECK(printed);
  CHECK(same);
  CHECK(data_before == data_after);
}

TEST_CASE("hdf5: several threads, each with a file of one name") {
  std::vector<std::vector<std::byte>> images(4);
  std::vector<std::thread> threads;
  for (auto& image : images) threads.emplace_back([&image] { image = sample().image(); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& image : images) CHECK(image.size() == images[0].size());
}
