// Mirrors edits/generate.h.
#include <scalevec/edits/generate.h>

#include "module.h"

namespace scalevec::python {
namespace {

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::context:
      return "context";
  }
  return "";
}

// Python's on_token(id), or None.
OnToken on_token_of(py::object callback) {
  if (callback.is_none()) return {};
  const std::shared_ptr<py::object> held(new py::object(std::move(callback)), [](py::object* object) {
    const py::gil_scoped_acquire lock;
    delete object;
  });
  return [held](std::int64_t id) {
    const py::gil_scoped_acquire lock;
    (*held)(id);
  };
}

template <class Run>
auto run(Run function, Transformer& model, const std::vector<std::int64_t>& prompt, std::int64_t max_tokens,
         double temperature, double top_p, std::int64_t top_k, std::uint64_t seed,
         std::vector<std::int64_t> stop, py::object callback) {
  const GenerateOptions options{.max_tokens = max_tokens,
                                .temperature = temperature,
                                .top_p = top_p,
                                .top_k = top_k,
                                .seed = seed,
                                .stop = std::move(stop)};
  const OnToken on_token = on_token_of(std::move(callback));
  const py::gil_scoped_release unlocked;
  const Interruptible interruptible(model);
  return function(model, prompt, options, on_token);
}

}  // namespace

void bind_generate(py::module_& m) {
  py::class_<Generated>(m, "Generated", "What a model wrote.")
      .def_readonly("ids", &Generated::ids, "Without the prompt.")
      .def_property_readonly(
          "finish", [](const Generated& made) { return finish_name(made.finish); },
          "'stop', 'length' or 'context'.");
  m.def(
      "generate",
      [](Transformer& model, const std::vector<std::int64_t>& prompt, std::int64_t max_tokens,
         double temperature, double top_p, std::int64_t top_k, std::uint64_t seed,
         std::vector<std::int64_t> stop, py::object on_token) {
        return run(generate, model, prompt, max_tokens, temperature, top_p, top_k, seed, std::move(stop),
                   std::move(on_token));
      },
      "model"_a, "prompt"_a, py::kw_only(), "max_tokens"_a = 80, "temperature"_a = 0.0, "top_p"_a = 1.0,
      "top_k"_a = 0, "seed"_a = 0, "stop"_a = std::vector<std::int64_t>{}, "on_token"_a = py::none(),
      "Continues a prompt of ids with the model as it stands.");
  m.def(
      "generate_both",
      [](Transformer& model, const std::vector<std::int64_t>& prompt, std::int64_t max_tokens,
         double temperature, double top_p, std::int64_t top_k, std::uint64_t seed,
         std::vector<std::int64_t> stop, py::object on_token) {
        BeforeAfter made = run(generate_both, model, prompt, max_tokens, temperature, top_p, top_k, seed,
                               std::move(stop), std::move(on_token));
        return std::pair(std::move(made.before), std::move(made.after));
      },
      "model"_a, "prompt"_a, py::kw_only(), "max_tokens"_a = 80, "temperature"_a = 0.0, "top_p"_a = 1.0,
      "top_k"_a = 0, "seed"_a = 0, "stop"_a = std::vector<std::int64_t>{}, "on_token"_a = py::none(),
      "(with the base, as the model stands): the same prompt, options and seed twice.");
}

}  // namespace scalevec::python
