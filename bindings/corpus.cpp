// Mirrors trainer/corpus.h and trainer/window_order.h; and of core/atomic_file.h what writes a corpus.
#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/trainer/corpus.h>
#include <scalevec/trainer/window_order.h>

#include "module.h"

namespace scalevec::python {
namespace {

Split split_of(std::string_view name) {
  for (const Split split : {Split::train, Split::validation}) {
    if (name == split_name(split)) return split;
  }
  fail(ErrorCode::value, "corpus: there is no such split",
       {.expected = "train or validation", .found = printable(name)});
}

// As a context manager: Python does not say when an object ends.
struct NewFolder {
  std::unique_ptr<AtomicFolder> folder;

  void leave(bool failed) {
    const auto ending = std::move(folder);  // removes what was not committed
    if (!failed) ending->commit();
  }
};

}  // namespace

void bind_corpus(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();

  py::class_<NewFolder>(
      m, "NewFolder",
      "A context manager: a folder that has its name whole, at the end of the block, or not at "
      "all, after an exception. Yields the folder to write to; sync the files in it.")
      .def(py::init([](std::filesystem::path target) {
             return NewFolder{std::make_unique<AtomicFolder>(std::move(target))};
           }),
           "target"_a)
      .def("__enter__", [](const NewFolder& made) { return made.folder->path(); })
      .def("__exit__", [](NewFolder& made, const py::object& type, const py::object&, const py::object&) {
        made.leave(!type.is_none());
      });
  m.def(
      "require_free_folder", [](const std::filesystem::path& target) { require_free(target, Replace::no); },
      "target"_a, release, "FileError unless a folder can have that name.");

  py::class_<Corpus>(m, "Corpus", "Token ids to train on.")
      .def_static("open", &Corpus::open, "folder"_a, release,
                  "A folder that `scalevec data build` wrote; FileError or InvalidError if it is damaged.")
      .def_static(
          "synthetic",
          [](std::int64_t vocabulary, std::int64_t order, double concentration, std::uint64_t seed,
             std::int64_t train_ids, std::int64_t validation_ids) {
            return Corpus::synthetic({vocabulary, order, concentration, seed, train_ids, validation_ids});
          },
          py::kw_only(), "vocabulary"_a = SyntheticSource{}.vocabulary, "order"_a = SyntheticSource{}.order,
          "concentration"_a = SyntheticSource{}.concentration, "seed"_a = SyntheticSource{}.seed,
          "train_ids"_a = SyntheticSource{}.train_ids, "validation_ids"_a = SyntheticSource{}.validation_ids,
          release,
          "Samples of a Markov chain in which `order` ids decide over the next, with rows from the symmetric "
          "Dirichlet distribution.")
      .def_property_readonly("vocabulary", &Corpus::vocabulary)
      .def_property_readonly("digest", &Corpus::digest, "Of all that a model learns from.")
      .def(
          "ids", [](const Corpus& corpus, std::string_view split) { return corpus.ids(split_of(split)); },
          "split"_a, "How many ids the split has.")
      .def(
          "windows",
          [](const Corpus& corpus, std::string_view split, std::int64_t context) {
            return corpus.windows(split_of(split), context);
          },
          "split"_a, "context"_a, "How many windows of `context` predictions the split has.")
      .def(
          "read",
          [](const Corpus& corpus, std::string_view split, const std::vector<std::int64_t>& windows,
             std::int64_t context) { return corpus.read(split_of(split), windows, context); },
          "split"_a, "windows"_a, "context"_a, release,
          "Ids of these windows, (n, context + 1) int64; the last id of one window is the first of the next.")
      .def(
          "entropy",
          [](const Corpus& corpus, std::optional<std::int64_t> context) {
            return context ? corpus.entropy(*context) : corpus.entropy();
          },
          "context"_a = py::none(),
          "Nats per id in the long run, NaN where nobody knows; with `context` the least mean loss that a "
          "model can reach on such windows.")
      .def(
          "verify",
          [](const Corpus& corpus, py::object callback) {
            const Progress made = progress(std::move(callback));
            const py::gil_scoped_release unlocked;
            corpus.verify(made);
          },
          "progress"_a = py::none(), "Reads every file; InvalidError if one is not what was written.");

  py::class_<WindowOrder>(m, "WindowOrder",
                          "The order in which training reads windows: every epoch is a permutation that "
                          "depends on (seed, epoch) alone.")
      .def(py::init<std::int64_t, std::uint64_t>(), "windows"_a, "seed"_a)
      .def("at", &WindowOrder::at, "position"_a);
}

}  // namespace scalevec::python
