#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/temporary_folder.h>

#include <scalevec/core/store/results_file.h>

using namespace scalevec;
using scalevec::testing::error_of;
using scalevec::testing::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

const ResultsFile::Header header{.command = "scalevec measure \xFF\n",
                                 .torch = "2.11.0",
                                 .device = "cpu",
                                 .seed = 42,
                                 .more = {{"dtype", std::string("float32")}, {"threads", std::int64_t{2}}}};

std::vector<Site> two_sites() {
  Site first;
  first.address = Address::parse("layers.0.attn.input_norm");
  first.native = "blk.0.attn_norm.weight";
  first.eps = 1e-5;
  first.width = first.group = 2;
  first.consumers = {{"q", "blk.0.attn_q.weight"}, {"k", "blk.0.attn_k.weight"}};
  Site last;
  last.address = Address::parse("final_norm");
  last.native = "output_norm.weight";
  last.role = Role::final;
  last.parametrisation = Parametrisation::offset;
  last.offset = 1.0;
  last.eps = 1e-6;
  last.width = last.group = 3;
  return {first, last};
}

template <class T>
std::vector<T> get(const hdf5::Group& group, const char* name) {
  return std::get<std::vector<T>>(group.read(name).values);
}

}  // namespace

TEST_CASE("ResultsFile: every part of the schema is there, once finished") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "out.h5";
  const std::vector<float> stored{1, 2, 0.5f, -0.5f, 0};
  const std::vector<double> effective{1, 2, 1.5, 0.5, 1}, saliency{5, 4, 3, 2, 1};
  const std::vector<std::string> digests{"sha256:aa", "sha256:bb"}, names{"kl", "flips"};
  const std::vector<double> values{0.5, 0.25};
  {
    ResultsFile file(path, header);
    file.model("llama", "model.gguf", R"({"a": 1})", digests);
    file.sites(two_sites(), stored, effective);
    file.channels({"ablation", saliency, "nats"});
    file.table("behaviour/first", "figure", {{"name", names}, {"value", values, "nats"}},
               {{"predictions", std::int64_t{2048}}});
    file.table("edits", "edited_vector", {{"address", std::vector<std::string>{}}},
               {{"edit", std::string("{}")}});
    CHECK_FALSE(fs::exists(path));
    file.finish();
  }
  hdf5::File read = hdf5::File::open(path);
  const hdf5::Group root = read.root();
  CHECK(root.integer_attribute("schema") == 1);
  CHECK(root.integer_attribute("complete") == 1);
  CHECK(root.integer_attribute("seed") == 42);
  CHECK(root.integer_attribute("threads") == 2);
  CHECK(root.text_attribute("torch") == "2.11.0");
  CHECK(root.text_attribute("device") == "cpu");
  CHECK(root.text_attribute("dtype") == "float32");
  CHECK(root.text_attribute("command") == "scalevec measure \\xff\\x0a");
  CHECK(root.text_attribute("created").size() == 20);
  CHECK(root.text_attribute("created").back() == 'Z');
  CHECK_FALSE(root.text_attribute("scalevec").empty());
  CHECK(root.group("model").text_attribute("family") == "llama");
  CHECK(get<std::string>(root.group("model"), "config") == std::vector<std::string>{R"({"a": 1})"});
  CHECK(get<std::string>(root.group("model"), "sha256") == digests);

  const hdf5::Group sites = root.group("sites");
  CHECK(get<std::string>(sites, "address") ==
        std::vector<std::string>{"layers.0.attn.input_norm", "final_norm"});
  CHECK(get<std::string>(sites, "native") ==
        std::vector<std::string>{"blk.0.attn_norm.weight", "output_norm.weight"});
  CHECK(get<std::string>(sites, "role") == std::vector<std::string>{"input", "final"});
  CHECK(get<std::string>(sites, "kind") == std::vector<std::string>{"rms", "rms"});
  CHECK(get<std::string>(sites, "parametrisation") == std::vector<std::string>{"plain", "offset"});
  CHECK(get<std::string>(sites, "consumers")[0] == "q=blk.0.attn_q.weight k=blk.0.attn_k.weight");
  CHECK(get<double>(sites, "offset") == std::vector<double>{0, 1});
  CHECK(get<double>(sites, "eps") == std::vector<double>{1e-5, 1e-6});
  CHECK(get<std::int64_t>(sites, "width") == std::vector<std::int64_t>{2, 3});
  CHECK(get<std::int64_t>(sites, "start") == std::vector<std::int64_t>{0, 2});
  for (const std::string& name : sites.names()) {
    if (name != "site") CHECK(sites.dimensions(name) == std::vector<std::string>{"site"});
  }
  const hdf5::Group scales = root.group("scales");
  CHECK(get<float>(scales, "stored") == stored);
  CHECK(get<double>(scales, "effective") == effective);
  CHECK(get<double>(scales, "ablation") == saliency);
  CHECK(get<std::int64_t>(scales, "site") == std::vector<std::int64_t>{0, 0, 1, 1, 1});
  CHECK(get<std::int64_t>(scales, "entry") == std::vector<std::int64_t>{0, 1, 0, 1, 2});
  CHECK(scales.dimensions("effective") == std::vector<std::string>{"channel"});
  CHECK(get<std::string>(root.group("behaviour").group("first"), "name") == names);
  CHECK(root.group("edits").text_attribute("edit") == "{}");
  CHECK_FALSE(root.group("edits").has("address"));
}

TEST_CASE("ResultsFile: the old file or the whole new one, and nothing beside it") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "out.h5";
  const auto entries = [&] {
    return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
  };
  { ResultsFile unfinished(path, header); }
  CHECK(entries() == 0);
  ResultsFile(path, header).finish();
  const auto size = fs::file_size(path);
  CHECK(size > 0);
  CHECK(error_of([&] { ResultsFile(path, header); }).code == ErrorCode::path);
  CHECK(error_of([&] { ResultsFile(folder.path() / "absent" / "out.h5", header); }).code == ErrorCode::path);

  // A process that ends before it has finished.
  const pid_t child = ::fork();
  if (child == 0) {
    ResultsFile file(path, header, Replace::files);
    file.table("sweep", "edit", {{"kl", std::vector<double>(100'000, 1.0)}});
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(fs::file_size(path) == size);
  CHECK(hdf5::File::open(path).root().integer_attribute("complete") == 1);

  ResultsFile next(path, header, Replace::files);
  next.table("sweep", "edit", {{"kl", std::vector<double>(1'000, 1.0)}});
  next.finish();
  CHECK(fs::file_size(path) > size);
  CHECK(entries() == 1);
}

TEST_CASE("ResultsFile: columns that do not fit are refused") {
  const TemporaryFolder folder;
  ResultsFile file(folder.path() / "out.h5", header);
  const std::vector<double> five(5), four(4);
  CHECK(error_of([&] { file.sites(two_sites(), five, four); }).code == ErrorCode::shape);
  CHECK(error_of([&] { file.sites(two_sites(), four, five); }).code == ErrorCode::shape);
  file.table("sweep", "edit", {{"kl", five}});
  CHECK(error_of([&] { file.table("sweep", "edit", {{"loss", five}}); }).code == ErrorCode::dup);
  CHECK(error_of([&] { file.table("uneven", "edit", {{"a", five}, {"b", four}}); }).code == ErrorCode::shape);
}
