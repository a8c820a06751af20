// Mirrors core/store/trace.h, trace_writer.h, trace_reader.h and trace_merge.h.
#include <pybind11/numpy.h>

#include <cstring>
#include <tuple>

#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_merge.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_writer.h>

#include "module.h"

namespace scalevec::python {
namespace {

using Per = TraceColumn::Per;
using Number = hdf5::Number;

template <class T>
T parse(std::string_view text, std::string_view (*name_of)(T), std::initializer_list<T> values,
        const char* what) {
  for (const T value : values) {
    if (name_of(value) == text) return value;
  }
  fail(ErrorCode::value, std::string(what) + " cannot be '" + printable(text) + "'");
}

py::dtype dtype_of(Number type) {
  return type == Number::f32   ? py::dtype::of<float>()
         : type == Number::f64 ? py::dtype::of<double>()
                               : py::dtype::of<std::int64_t>();
}

// A dict of arrays by column: what is not in it is NaN (0 in columns of integers).
void fill(TraceRow& row, const TraceHeader& header, const py::dict& values) {
  row.clear();
  for (const auto& [key, value] : values) {
    const std::size_t i = row.layout().find(py::cast<std::string>(key));
    const TraceLayout::Place& place = row.layout()[i];
    const auto array = py::array::ensure(value);
    if (!array) throw py::error_already_set();
    const auto cast = py::cast<py::array>(py::module_::import("numpy").attr("ascontiguousarray")(
        array, py::arg("dtype") = dtype_of(place.type)));
    if (cast.size() != place.entries) {
      fail(ErrorCode::shape,
           "TraceWriter.append: '" + header.columns[i].name + "' has " + std::to_string(place.entries) +
               " entries, not " + std::to_string(cast.size()),
           {.key = header.columns[i].name});
    }
    const auto copy = [&]<class T>(std::span<T> into) {
      std::memcpy(into.data(), cast.data(), into.size_bytes());
    };
    if (place.type == Number::f32) copy(row.column<float>(i));
    if (place.type == Number::f64) copy(row.column<double>(i));
    if (place.type == Number::i64) copy(row.column<std::int64_t>(i));
  }
}

// The writer, with a row to pack a dict into.
struct Writer {
  TraceHeader header;
  TraceWriter writer;
  TraceRow row;
  Writer(const std::filesystem::path& path, TraceHeader h, const TraceWriter::Options& options)
      : header(std::move(h)), writer(path, header, options), row(writer.layout()) {}
};

std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> tuples(const std::vector<TraceGap>& gaps) {
  std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> out;
  for (const TraceGap& gap : gaps) out.emplace_back(gap.first, gap.last, gap.rows);
  return out;
}

TraceReader::Damage damage_of(bool skip) {
  return skip ? TraceReader::Damage::skip : TraceReader::Damage::refuse;
}

}  // namespace

void bind_trace_file(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<TraceColumn>(m, "TraceColumn", "What a trace holds of one step.")
      .def(py::init([](std::string name, std::string unit, std::string description, std::string_view per,
                       std::string_view type) {
             return TraceColumn{
                 std::move(name), std::move(unit), std::move(description),
                 parse(per, trace_per_name, {Per::run, Per::site, Per::channel}, "per"),
                 parse(type, trace_type_name, {Number::f32, Number::f64, Number::i64}, "type")};
           }),
           "name"_a, py::kw_only(), "unit"_a = "", "description"_a = "", "per"_a = "site",
           "type"_a = "float32", "per is run, site or channel; type is float32, float64 or int64.")
      .def_readonly("name", &TraceColumn::name)
      .def_readonly("unit", &TraceColumn::unit)
      .def_readonly("description", &TraceColumn::description)
      .def_property_readonly("per", [](const TraceColumn& column) { return trace_per_name(column.per); })
      .def_property_readonly("type", [](const TraceColumn& column) { return trace_type_name(column.type); })
      .def("__repr__", [](const TraceColumn& column) { return "TraceColumn('" + column.name + "')"; });

  py::class_<TraceWriter::Status>(m, "TraceStatus", "What has become of the rows given to a writer.")
      .def_readonly("appended", &TraceWriter::Status::appended)
      .def_readonly("kept", &TraceWriter::Status::kept, "On the disk.")
      .def_readonly("dropped", &TraceWriter::Status::dropped)
      .def_readonly("last_kept", &TraceWriter::Status::last_kept,
                    "Step of the last row on the disk; -1: none.")
      .def_readonly("error", &TraceWriter::Status::error, "The first failure and what to do; empty: none.")
      .def_readonly("failing", &TraceWriter::Status::failing, "Nothing is being written now.");

  py::class_<Writer>(m, "TraceWriter",
                     "Appends rows to a trace; never waits for a disk, and never ends a training for one.")
      .def(py::init([](const std::filesystem::path& path, std::vector<TraceColumn> columns,
                       std::vector<Site> sites, std::string command, std::string torch, std::string device,
                       std::int64_t seed, std::string model_config, std::optional<std::int64_t> after,
                       double flush_seconds, std::size_t ring_bytes, std::size_t segment_bytes, int deflate) {
             TraceHeader header{.run = {.command = std::move(command),
                                        .torch = std::move(torch),
                                        .device = std::move(device),
                                        .seed = seed},
                                .model_config = std::move(model_config),
                                .sites = std::move(sites),
                                .columns = std::move(columns)};
             return std::make_unique<Writer>(path, std::move(header),
                                             TraceWriter::Options{.flush_seconds = flush_seconds,
                                                                  .ring_bytes = ring_bytes,
                                                                  .segment_bytes = segment_bytes,
                                                                  .deflate = deflate,
                                                                  .after = after});
           }),
           "path"_a, "columns"_a, "sites"_a = std::vector<Site>{}, py::kw_only(), "command"_a = "",
           "torch"_a = "", "device"_a = "cpu", "seed"_a = 0, "model_config"_a = "", "after"_a = py::none(),
           "flush_seconds"_a = 1.0, "ring_bytes"_a = std::size_t{32} << 20,
           "segment_bytes"_a = std::size_t{32} << 20, "deflate"_a = 1, release,
           "Goes on with a live trace; with `after`, rows beyond that step are dropped first, of a finished "
           "one too.")
      .def_property_readonly("row_bytes", [](const Writer& w) { return w.writer.layout().row_bytes(); })
      .def(
          "append",
          [](Writer& w, std::int64_t step, const py::dict& values) {
            fill(w.row, w.header, values);
            return w.writer.append(step, w.row.bytes());
          },
          "step"_a, "values"_a,
          "Arrays by column; what is left out is NaN. False: the row was dropped, as a gap.")
      .def(
          "append",
          [](Writer& w, std::int64_t step, const py::array& packed) {
            if ((packed.flags() & py::array::c_style) == 0)
              fail(ErrorCode::shape, "TraceWriter.append: a packed row must be contiguous");
            return w.writer.append(step, {static_cast<const std::byte*>(packed.data()),
                                          static_cast<std::size_t>(packed.nbytes())});
          },
          "step"_a, "packed"_a, "The row's bytes: columns in order, each begins at a multiple of 8.")
      .def(
          "flush", [](Writer& w) { return w.writer.flush(); }, release,
          "Waits until the rows so far are on the disk; False: they are not.")
      .def(
          "close", [](Writer& w, bool merge) { return w.writer.close(merge); }, "merge"_a = true, release,
          "Makes the results file; without `merge` leaves the live folder, sealed.")
      .def("status", [](const Writer& w) { return w.writer.status(); });

  py::class_<TraceReader>(m, "TraceReader", "A trace as it stood when it was opened.")
      .def(py::init([](const std::filesystem::path& path, bool skip_damage) {
             return std::make_unique<TraceReader>(path, damage_of(skip_damage));
           }),
           "path"_a, py::kw_only(), "skip_damage"_a = false, release)
      .def_property_readonly("columns", [](const TraceReader& r) { return r.header().columns; })
      .def_property_readonly("sites", [](const TraceReader& r) { return r.header().sites; })
      .def_property_readonly(
          "start", [](const TraceReader& r) { return r.layout().start(); },
          "First channel of each site, and behind the last.")
      .def_property_readonly("command", [](const TraceReader& r) { return r.header().run.command; })
      .def_property_readonly("model_config", [](const TraceReader& r) { return r.header().model_config; })
      .def_property_readonly("created", &TraceReader::created)
      .def_property_readonly(
          "more",
          [](const TraceReader& reader) {
            std::map<std::string, std::string> texts;
            for (const auto& [name, value] : reader.header().run.more) {
              if (const auto* text = std::get_if<std::string>(&value)) texts[name] = *text;
            }
            return texts;
          },
          "Texts that the writer added: of a training its experiment and its corpus.")
      .def_property_readonly("finished", &TraceReader::finished)
      .def_property_readonly("rows", &TraceReader::rows)
      .def_property_readonly("steps",
                             [](const TraceReader& r) {
                               const auto& steps = r.steps();
                               return py::array_t<std::int64_t>(static_cast<py::ssize_t>(steps.size()),
                                                                steps.data());
                             })
      .def_property_readonly(
          "gaps", [](const TraceReader& r) { return tuples(r.gaps()); },
          "(first step, last step, rows) of rows that were lost.")
      .def_property_readonly(
          "resumes",
          [](const TraceReader& r) {
            std::vector<std::pair<std::int64_t, std::int64_t>> out;
            for (const TraceResume& resume : r.resumes()) out.emplace_back(resume.step, resume.dropped);
            return out;
          },
          "(step, rows dropped) of writers that went on.")
      .def_property_readonly("damage", &TraceReader::damage)
      .def(
          "read",
          [](const TraceReader& r, std::string_view column, std::size_t row, std::optional<std::size_t> rows,
             std::size_t entry, std::optional<std::size_t> entries) {
            const std::size_t i = r.layout().find(column);
            const TraceLayout::Place& place = r.layout()[i];
            const std::size_t height = rows.value_or(r.rows() - std::min(row, r.rows()));
            const std::size_t width =
                entries.value_or(static_cast<std::size_t>(place.entries) -
                                 std::min(entry, static_cast<std::size_t>(place.entries)));
            auto bytes = std::make_unique<std::vector<std::byte>>();
            {
              const py::gil_scoped_release unlocked;
              *bytes = r.read(i, row, height, entry, width);
            }
            std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(height)};
            if (r.header().columns[i].per != Per::run) shape.push_back(static_cast<py::ssize_t>(width));
            const void* data = bytes->data();
            const py::capsule owner(bytes.release(),
                                    [](void* p) { delete static_cast<std::vector<std::byte>*>(p); });
            return py::array(dtype_of(place.type), shape, data, owner);
          },
          "column"_a, "row"_a = 0, "rows"_a = py::none(), "entry"_a = 0, "entries"_a = py::none(),
          "(rows,) of the run, or (rows, entries); all by default.");

  m.def(
      "merge_trace",
      [](const std::filesystem::path& path, const std::filesystem::path& output, int deflate,
         bool skip_damage, py::object callback) {
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        merge_trace(path, output, deflate, damage_of(skip_damage), report);
      },
      "path"_a, "output"_a = "", "deflate"_a = 1, "skip_damage"_a = false, "progress"_a = py::none(),
      "Makes the results file of a live trace that no writer has.");
}

}  // namespace scalevec::python
