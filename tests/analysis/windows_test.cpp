#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/tensors.h>

#include <scalevec/analysis/windows.h>

using namespace scalevec;
using scalevec::testing::error_of;

namespace {

std::vector<std::int64_t> values(const at::Tensor& t) {
  const at::Tensor flat = t.contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

std::vector<std::int64_t> range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(end - begin));
  std::iota(out.begin(), out.end(), begin);
  return out;
}

using Ids = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("Windows: consecutive, context - 1 predictions each, last ones of under two ids left out") {
  // 9 ids: windows of 4, 4, and 1 id that is left out; then a document of 1; then one of 6: 4 and 2.
  const Documents text{range(0, 9), {50}, range(100, 106), {}};
  const Windows windows(text, {.context = 4});
  REQUIRE(windows.size() == 4);
  CHECK(windows.predictions() == 3 + 3 + 3 + 1);
  CHECK(windows.documents() == 2);
  CHECK(windows[0].ids.sizes() == at::IntArrayRef{1, 3});
  CHECK(values(windows[0].ids) == Ids{0, 1, 2});
  CHECK(values(windows[0].targets) == Ids{1, 2, 3});
  CHECK(windows[0].first == 1);
  CHECK(values(windows[1].targets) == Ids{5, 6, 7});
  CHECK(windows[1].first == 5);
  CHECK(values(windows[3].ids) == Ids{104});
  CHECK(values(windows[3].targets) == Ids{105});
  CHECK(windows[3].document == 2);
}

TEST_CASE("Windows: a BOS begins each one, counts as one of its ids, and is not doubled") {
  const Documents text{range(10, 17), {7, 20, 21}};
  const Windows windows(text, {.context = 4, .bos = 7});
  REQUIRE(windows.size() == 4);
  CHECK(windows.predictions() == 3 + 3 + 1 + 2);
  CHECK(values(windows[0].ids) == Ids{7, 10, 11});
  CHECK(values(windows[0].targets) == Ids{10, 11, 12});
  CHECK(windows[0].first == 0);
  CHECK(values(windows[2].ids) == Ids{7});
  CHECK(values(windows[2].targets) == Ids{16});
  CHECK(windows[2].first == 6);
  CHECK(values(windows[3].ids) == Ids{7, 20});
  CHECK(values(windows[3].targets) == Ids{20, 21});
  CHECK(windows[3].first == 1);
}

TEST_CASE("Windows: the limit counts ids of the text over all documents") {
  const Documents text{range(0, 5), range(10, 15), range(20, 25)};
  const Windows windows(text, {.context = 8, .tokens = 8});
  CHECK(windows.predictions() == 4 + 2);
  CHECK(windows.documents() == 2);
}

TEST_CASE("Windows: what cannot be predicted is refused") {
  CHECK(error_of([] { Windows({{1, 2, 3}}, {.context = 1}); }).code == ErrorCode::value);
  CHECK(error_of([] { Windows({{1}, {2}}, {}); }).code == ErrorCode::value);
  CHECK(error_of([] { Windows({}, {}); }).code == ErrorCode::value);
  CHECK(error_of([] { Windows({{1, 2}}, {.tokens = -1}); }).code == ErrorCode::value);
  const Documents text{{1, 2, 9}};
  const Windows windows(text, {});
  windows.require_ids_below(10);
  const auto caught = error_of([&] { windows.require_ids_below(9); });
  CHECK(caught.code == ErrorCode::value);
  CHECK(caught.message.find("place 2 of document 0") != std::string::npos);
  const Windows with_bos(text, {.bos = 30});
  CHECK(error_of([&] { with_bos.require_ids_below(10); }).code == ErrorCode::value);
}
