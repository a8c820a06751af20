#include <scalevec/edits/record.h>

#include <limits>
#include <variant>

#include <fmt/format.h>

#include <scalevec/core/dtype.h>
#include <scalevec/core/error.h>
#include <scalevec/edits/describe.h>
#include <scalevec/edits/edit_file.h>

namespace scalevec {
namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr const char* nats = "nats";

std::string arguments_text(const Operation& operation) {
  struct Text {
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::string& v) const { return v; }
    std::string operator()(const std::vector<double>& v) const { return fmt::format("{} values", v.size()); }
    std::string operator()(const std::vector<std::byte>& v) const {
      return fmt::format("{} bytes", v.size());
    }
  };
  std::string text;
  for (const auto& [name, value] : operation.arguments) {
    text += fmt::format("{}{}={}", text.empty() ? "" : ", ", name, std::visit(Text{}, value));
  }
  return text;
}

// One list by column out of rows.
template <class Row, class Get>
auto column(std::span<const Row> rows, Get get) {
  std::vector<std::decay_t<decltype(get(rows[0]))>> out;
  out.reserve(rows.size());
  for (const Row& row : rows) out.push_back(get(row));
  return out;
}

}  // namespace

ResultsFile::Header results_header(const Measurement& made, std::string command) {
  return {.command = std::move(command),
          .torch = made.torch,
          .device = made.device,
          .seed = static_cast<std::int64_t>(made.seed),
          .more = {{"dtype", made.dtype}, {"threads", made.threads}}};
}

void record_model(ResultsFile& file, const Checkpoint& checkpoint, const ScaleMap& scales) {
  std::vector<std::string> digests;
  for (std::size_t i = 0; i < scales.size(); ++i) digests.push_back(scales.base_digest(i));
  file.model(checkpoint.family(), checkpoint.path().filename().string(), checkpoint.config_json(), digests);
}

void record_sites(ResultsFile& file, const ScaleMap& scales) {
  std::vector<double> stored, effective;
  bool narrow = true;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const ScaleVector vector = scales.base(i);
    narrow = narrow && vector.dtype() != DType::f64;
    const auto add = [](std::vector<double>& list, const at::Tensor& values) {
      const at::Tensor host = values.to(at::kCPU, at::kDouble).contiguous();
      list.insert(list.end(), host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel());
    };
    add(stored, vector.stored());
    add(effective, vector.effective());
  }
  if (narrow) {
    const std::vector<float> floats(stored.begin(), stored.end());
    file.sites(scales.sites(), std::span(floats), effective);
  } else {
    file.sites(scales.sites(), std::span<const double>(stored), effective);
  }
}

void record_edit(ResultsFile& file, const Edit& edit) {
  const std::span<const EditedVector> vectors(edit.vectors);
  const auto address = column(vectors, [](const EditedVector& v) { return v.address; });
  const auto native = column(vectors, [](const EditedVector& v) { return v.native; });
  const auto before = column(vectors, [](const EditedVector& v) { return v.base; });
  const auto after = column(vectors, [](const EditedVector& v) { return v.after; });
  const auto channels =
      column(vectors, [](const EditedVector& v) { return static_cast<std::int64_t>(v.channels.size()); });
  file.table("edits", "edited_vector",
             {{"address", address},
              {"native", native},
              {"sha256_before", before},
              {"sha256_after", after},
              {"channels", channels}},
             {{"operations", describe(edit, /*brief=*/true)}, {"edit", edit_text(edit)}});
  const std::span<const Operation> operations(edit.operations);
  const auto verb = column(operations, [](const Operation& o) { return o.verb; });
  const auto selector = column(operations, [](const Operation& o) { return o.selector; });
  const auto arguments = column(operations, arguments_text);
  const auto changed = column(operations, [](const Operation& o) { return o.changed; });
  const auto lost = column(operations, [](const Operation& o) { return o.lost; });
  file.table("edits/operations", "operation",
             {{"verb", verb},
              {"selector", selector},
              {"arguments", arguments},
              {"changed", changed},
              {"lost", lost}});
}

void record_measurement(ResultsFile& file, const Measurement& made, std::string_view group) {
  const Change& c = made.change;
  struct Row {
    std::string name, unit;
    Figure figure;
  };
  const std::vector<Row> rows{{"loss_base", "nats/token", c.loss_base},
                              {"loss_edited", "nats/token", c.loss_edited},
                              {"loss_change", "nats/token", c.loss_change},
                              {"perplexity_base", "", c.perplexity_base},
                              {"perplexity_edited", "", c.perplexity_edited},
                              {"kl", "nats/token", c.kl},
                              {"kl_reverse", "nats/token", c.kl_reverse},
                              {"flips", "fraction", c.flips},
                              {"tv", "fraction", c.tv}};
  const std::span<const Row> figures(rows);
  const auto name = column(figures, [](const Row& r) { return r.name; });
  const auto unit = column(figures, [](const Row& r) { return r.unit; });
  const auto value = column(figures, [](const Row& r) { return r.figure.value; });
  const auto low = column(figures, [](const Row& r) { return r.figure.low.value_or(none); });
  const auto high = column(figures, [](const Row& r) { return r.figure.high.value_or(none); });
  file.table(group, "figure",
             {{"name", name}, {"unit", unit}, {"value", value}, {"low", low}, {"high", high}},
             {{"predictions", c.predictions},
              {"chunks", c.chunks},
              {"windows", made.windows},
              {"documents", made.documents},
              {"context", made.context},
              {"bos", made.bos.value_or(-1)},
              {"seed", static_cast<std::int64_t>(made.seed)},
              {"resamples", made.resamples},
              {"seconds", made.seconds},
              {"largest_logit_difference", c.largest_difference},
              {"reached_output", std::int64_t{made.reached_output ? 1 : 0}},
              {"no_op_predictions", made.control.predictions},
              {"no_op_loss_change", made.control.loss_change},
              {"no_op_kl", made.control.kl},
              {"no_op_largest_logit_difference", made.control.largest_difference}});
  const PerToken& t = made.per_token;
  if (t.kl.empty()) return;
  file.table(fmt::format("{}/per_token", group), "prediction",
             {{"document", t.document},
              {"position", made.position},
              {"target", t.target},
              {"loss_base", t.loss_base, nats},
              {"loss_change", t.loss_change, nats},
              {"kl", t.kl, nats},
              {"tv", t.tv},
              {"flip", t.flip}});
}

void record_sweep(ResultsFile& file, const ScaleMap& scales, std::span<const Trial> trials,
                  std::span<const Change> changes, std::span<const std::string> methods,
                  std::string_view group) {
  if (trials.size() != changes.size() || trials.size() != methods.size()) {
    fail(ErrorCode::shape,
         fmt::format("record_sweep: {} trials, {} changes and {} methods; expected one of each for a trial",
                     trials.size(), changes.size(), methods.size()));
  }
  const auto address = column(trials, [&](const Trial& t) { return scales[t.vector].address(); });
  const auto channel = column(trials, [](const Trial& t) { return t.channel; });
  const auto asked = column(trials, [](const Trial& t) { return t.value; });
  const auto loss = column(changes, [](const Change& c) { return c.loss_edited.value; });
  const auto change = column(changes, [](const Change& c) { return c.loss_change.value; });
  const auto low = column(changes, [](const Change& c) { return c.loss_change.low.value_or(none); });
  const auto high = column(changes, [](const Change& c) { return c.loss_change.high.value_or(none); });
  const auto kl = column(changes, [](const Change& c) { return c.kl.value; });
  // Half the interval's width.
  const auto error = column(
      changes, [](const Change& c) { return c.kl.low && c.kl.high ? (*c.kl.high - *c.kl.low) / 2 : none; });
  const auto flips = column(changes, [](const Change& c) { return c.flips.value; });
  const auto predictions = column(changes, [](const Change& c) { return c.predictions; });
  file.table(group, "edit",
             {{"address", address},
              {"channel", channel},
              {"value", asked},
              {"loss", loss, nats},
              {"loss_change", change, nats},
              {"loss_change_low", low, nats},
              {"loss_change_high", high, nats},
              {"kl", kl, nats},
              {"kl_error", error, nats},
              {"flips", flips},
              {"predictions", predictions},
              {"method", methods}});
}

void record_saliency(ResultsFile& file, const Saliency& saliency) {
  const auto joined = [](const PerChannel& values) {
    std::vector<double> out;
    for (const std::vector<double>& row : values) out.insert(out.end(), row.begin(), row.end());
    return out;
  };
  const std::vector<double> gradient = joined(saliency.gradient), ablation = joined(saliency.ablation());
  file.channels({"gradient", gradient, "nats per unit of g"});
  file.channels({"ablation", ablation, nats});
}

}  // namespace scalevec
