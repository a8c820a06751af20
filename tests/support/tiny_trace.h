#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/store/trace.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_writer.h>

namespace scalevec::testing {

/// Three sites of 2, 0 and 3 channels, and a column of every kind.
inline TraceHeader tiny_header() {
  TraceHeader header;
  header.run = {.command = "scalevec train e.toml",
                .torch = "2.11.0",
                .device = "cpu",
                .seed = 7,
                .more = {{"dtype", std::string("bfloat16")}, {"threads", std::int64_t{2}}, {"clip", 0.5}}};
  header.model_config = R"({"layers": 2})";
  for (const auto& [address, width] : std::vector<std::pair<std::string, std::int64_t>>{
           {"layers.0.attn.input_norm", 2}, {"layers.0.mlp.input_norm", 0}, {"final_norm", 3}}) {
    Site site;
    site.address = Address::parse(address);
    site.native = "model." + address + ".weight";
    site.role = address == "final_norm" ? Role::final : Role::input;
    site.eps = 1e-5;
    site.width = site.group = width;
    site.consumers = {{"q", "a=b c"}, {"head", "lm_head.weight"}};
    header.sites.push_back(site);
  }
  using enum hdf5::Number;
  using enum TraceColumn::Per;
  header.columns = {{"loss", "nats", "mean loss", run, f64},
                    {"count", "1", "values that are not finite", site, i64},
                    {"rms", "1", "root mean square", site, f32},
                    {"scale", "1", "the vector", channel, f32}};
  return header;
}

/// What row `step` holds: all its own, NaN payloads and negative zero among it.
inline std::vector<std::byte> tiny_row(const TraceLayout& layout, std::int64_t step) {
  TraceRow row(layout);
  const auto s = static_cast<double>(step);
  row.column<double>(0)[0] = step % 7 == 3 ? std::numeric_limits<double>::quiet_NaN() : 1.0 / (s + 1.0);
  for (std::size_t i = 0; i < 3; ++i) {
    row.column<std::int64_t>(1)[i] = step * 1000003 + static_cast<std::int64_t>(i);
    row.column<float>(2)[i] = i == 1 ? -0.0f : static_cast<float>(s) + 0.25f * static_cast<float>(i);
  }
  for (std::size_t i = 0; i < 5; ++i)
    row.column<float>(3)[i] = static_cast<float>(step * 10 + static_cast<int>(i));
  const auto bytes = row.bytes();
  return {bytes.begin(), bytes.end()};
}

/// Every row that the reader has is the one that was appended; the steps are given back.
inline std::vector<std::int64_t> check_rows(const TraceReader& reader) {
  std::vector<std::int64_t> steps;
  reader.each_row(0, reader.rows(), [&](std::int64_t step, std::span<const std::byte> row) {
    // Files hold no padding.
    const std::vector<std::byte> wanted = tiny_row(reader.layout(), step);
    for (std::size_t i = 0; i < reader.layout().columns(); ++i) {
      const TraceLayout::Place& place = reader.layout()[i];
      if (std::memcmp(row.data() + place.offset, wanted.data() + place.offset, place.bytes()) != 0) {
        FAIL("wrong row at step ", step, ", column ", i);
      }
    }
    steps.push_back(step);
  });
  if (steps != reader.steps()) FAIL("steps() says otherwise");
  return steps;
}

inline std::vector<std::int64_t> steps_to(std::int64_t last, std::int64_t first = 0) {
  std::vector<std::int64_t> steps;
  for (std::int64_t step = first; step <= last; ++step) steps.push_back(step);
  return steps;
}

/// Five rows or so in a segment.
inline TraceWriter::Options small() {
  const TraceLayout layout(tiny_header());
  return {.flush_seconds = 3600,
          .ring_bytes = 64 * layout.row_bytes(),
          .segment_bytes = 5 * (layout.row_bytes() + 60)};
}

inline void append(TraceWriter& writer, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) {
    REQUIRE(writer.append(step, tiny_row(writer.layout(), step)));
  }
}

}  // namespace scalevec::testing
