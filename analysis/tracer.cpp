#include <scalevec/analysis/tracer.h>

#include <algorithm>
#include <set>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/tracer_state.h>
#include <scalevec/core/error.h>
#include <scalevec/core/parallel.h>

namespace scalevec {
using Values = std::vector<double>;

Tracer::Tracer(std::filesystem::path path, std::vector<TracedVector> vectors, TraceHeader header,
               const Options& options) {
  if (vectors.empty()) fail(ErrorCode::addr, "tracer: there is no scale vector to trace");
  if (options.every < 1)
    fail(ErrorCode::value, "tracer: steps between rows must be 1 or more", {.key = "every"});
  for (const TracedVector& v : vectors) {
    for (const TracedMap& map : v.consumers) {
      if (map.weight.dim() >= 2 && map.weight.size(-1) == v.site.width) continue;
      fail(ErrorCode::shape,
           fmt::format("tracer: '{}' has {} channels, but the map of branch {} that reads it is [{}]",
                       v.site.address.str(), v.site.width, map.branch, fmt::join(map.weight.sizes(), ", ")),
           {.tensor = v.site.address.str()});
    }
  }
  for (const TracedVector& v : vectors) {
    std::set<std::string> names;
    for (const TracedMap& map : v.consumers) {
      if (!map.branch.empty() && names.insert(State::of_branch("BRANCH", map.branch)).second) continue;
      fail(ErrorCode::dup,
           fmt::format("tracer: two of the maps that read '{}' are of branch '{}', or it has no name: their "
                       "columns would be one",
                       v.site.address.str(), printable(map.branch)),
           {.tensor = v.site.address.str(), .found = printable(map.branch)});
    }
  }
  state_ = std::make_unique<State>(std::move(path), std::move(vectors), std::move(header), options);
}

Tracer::~Tracer() = default;

bool Tracer::due(std::int64_t step) const { return step % state_->options.every == 0 || step == 1; }

// f writes what is of its own vector alone, and does not call Python, whose lock the caller may hold.
template <class F>
void Tracer::State::each_vector(F&& f) {
  const auto one = [&](std::int64_t i) {
    const at::NoGradGuard no_grad;  // of each thread its own; so is a device's stream
    f(static_cast<std::size_t>(i));
  };
  const auto count = static_cast<std::int64_t>(vectors.size());
  const bool on_host = std::all_of(vectors.begin(), vectors.end(),
                                   [](const TracedVector& v) { return v.stored.device().is_cpu(); });
  if (on_host) return one_by_one(count, one);
  for (std::int64_t i = 0; i < count; ++i) one(i);
}

std::size_t Tracer::State::index_of(std::string_view address) const {
  const auto found = index.find(std::string(address));
  if (found != index.end()) return found->second;
  fail(ErrorCode::addr, fmt::format("tracer: no vector '{}' is traced", printable(address)),
       {.tensor = printable(address)});
}

std::size_t Tracer::State::number_of(std::string_view column) const {
  const auto found = column_of.find(column);
  if (found != column_of.end()) return found->second;
  fail(
      ErrorCode::value,
      fmt::format("tracer: this trace has no column '{}'; some are only there on request", printable(column)),
      {.found = printable(column)});
}

void Tracer::see(std::string_view address, const at::Tensor& normalized) {
  State& s = *state_;
  const std::size_t vector = s.index_of(address);
  if (s.inputs.empty()) return;
  const std::int64_t width = s.vectors[vector].site.width;
  if (normalized.dim() < 1 || normalized.size(-1) != width) {
    fail(ErrorCode::shape,
         fmt::format("tracer: inputs of '{}' are [{}]; its vector has {} channels", address,
                     fmt::join(normalized.sizes(), ", "), width),
         {.tensor = std::string(address)});
  }
  const at::NoGradGuard no_grad;
  if (std::exchange(s.told[vector], false)) s.inputs[vector].clear();
  s.inputs[vector].add(normalized);
}

at::Tensor Tracer::input_moments(std::string_view address) const {
  const std::size_t vector = state_->index_of(address);
  if (!state_->inputs.empty() && state_->told[vector]) return state_->inputs[vector].mean();
  fail(ErrorCode::state,
       fmt::format(
           "tracer: the inputs of '{}' are in no row yet; trace with inputs, and ask between a row and "
           "the next forward pass",
           address),
       {.tensor = std::string(address)});
}

std::optional<std::int64_t> Tracer::inputs_row() const {
  const std::vector<char>& told = state_->told;
  return std::ranges::find(told, 1) == told.end() ? std::nullopt : std::optional(state_->told_in);
}

void Tracer::save_inputs(const std::filesystem::path& path) const {
  const State& s = *state_;
  const std::optional<std::int64_t> row = inputs_row();
  if (!row) {
    fail(ErrorCode::state,
         "tracer: no inputs to save; trace with inputs, and save between a row and the next forward pass",
         {.file = path.string()});
  }
  std::vector<Site> sites;
  for (const TracedVector& v : s.vectors) sites.push_back(v.site);
  ResultsFile file(path, s.run, Replace::files);
  file.sites(sites);
  file.table("inputs", "", {}, {{"step", *row}});
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    if (!s.told[i]) continue;
    const std::string group = "inputs/" + sites[i].address.str();
    const at::Tensor moments = s.inputs[i].mean().contiguous();
    const auto width = static_cast<std::uint64_t>(moments.size(0));
    const Column column{
        "moments", std::span(moments.const_data_ptr<double>(), static_cast<std::size_t>(moments.numel())),
        "1"};
    moments.dim() == 2 ? file.matrix(group, column, width, width) : file.table(group, "channel", {column});
  }
  file.finish();
}

void Tracer::note(std::string_view address, std::string_view column, std::span<const double> values) {
  State& s = *state_;
  const std::size_t vector = s.index_of(address), number = s.number_of(column);
  const std::int64_t entries = s.per_channel(number) ? s.vectors[vector].site.width : 1;
  if (static_cast<std::int64_t>(values.size()) != entries) {
    fail(ErrorCode::shape,
         fmt::format("tracer: '{}' of '{}' is {} values; given are {}", column, address, entries,
                     values.size()),
         {.tensor = std::string(address)});
  }
  s.notes.push_back({vector, number, Values(values.begin(), values.end())});
}

void Tracer::before(std::int64_t step, const UpdateView& view) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.steps.clear();
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    // Of a vector with components beta is what decays towards the target.
    const UpdateFacts facts = view(s.vectors[i].beta.defined() ? s.vectors[i].beta : s.vectors[i].stored);
    // SGD's decay joins the gradient, and gathers in the momentum with it.
    const double gathered = facts.rule == UpdateFacts::Rule::sgd ? 1.0 / (1.0 - facts.momentum) : 1.0;
    if (facts.gradient.defined()) s.past[i].horizon += facts.rate * facts.weight_decay * gathered;
  }
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    if (due(step)) s.start(i, view);
    s.remember_noise(i, due(step + 1), view);
  }
}

void Tracer::after(std::int64_t step, const UpdateView& view) {
  State& s = *state_;
  const std::vector<State::Note> notes = std::exchange(s.notes, {});
  if (s.steps.empty()) return;
  const at::NoGradGuard no_grad;
  s.row->clear();
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    const std::vector<TracedMap>& near = s.vectors[i].beside();
    for (std::size_t k = 0; k < near.size(); ++k) s.steps[i].maps[k].now = view(near[k].weight);
  }
  s.told_in = step;
  s.each_vector([&](std::size_t i) { s.finish(i, step); });
  s.each_vector([&](std::size_t i) { s.neighbours(i); });
  for (std::size_t i = 0; i < s.vectors.size(); ++i) s.judge(i, step);
  for (const State::Note& note : notes) s.put(note);
  s.steps.clear();
  s.writer->append(step, s.row->bytes());
}

std::map<std::string, at::Tensor> Tracer::state() const {
  std::map<std::string, at::Tensor> out;
  for (std::size_t i = 0; i < state_->vectors.size(); ++i) {
    const State::Past& p = state_->past[i];
    const std::string at = state_->vectors[i].site.address.str();
    out[at + "/g"] = tensor_of(p.g);
    out[at + "/norms"] = tensor_of(p.norms);
    out[at + "/balance"] = tensor_of(p.balance);
    out[at + "/flips"] = tensor_of(p.flips);
    out[at + "/horizon"] = tensor_of({p.horizon});
    Values weights;
    for (const State::WeightNorm& w : p.weights) weights.insert(weights.end(), {w.first, w.largest, w.peak});
    out[at + "/weights"] = tensor_of(weights);
    out[at + "/noise_g"] = tensor_of(p.noise_g);
    for (std::size_t k = 0; k < p.noise_dw.size(); ++k)
      out[fmt::format("{}/noise_dw.{}", at, k)] = p.noise_dw[k];
  }
  return out;
}

void Tracer::restore(const std::map<std::string, at::Tensor>& state) {
  for (std::size_t i = 0; i < state_->vectors.size(); ++i) {
    const std::string at = state_->vectors[i].site.address.str();
    const auto values = [&](const char* name) {
      const auto found = state.find(fmt::format("{}/{}", at, name));
      if (found != state.end()) return doubles_of(found->second);
      fail(ErrorCode::config,
           fmt::format("tracer: the state has no '{}' of '{}': it is of another model or an older scalevec",
                       name, at),
           {.tensor = at});
    };
    const Values horizon = values("horizon"), weights = values("weights");
    if (horizon.size() != 1 || weights.size() % 3 != 0)
      fail(ErrorCode::config, "tracer: the state is damaged", {.tensor = at});
    state_->past[i] = {.g = values("g"),
                       .norms = values("norms"),
                       .log_g = {},
                       .log_norms = {},
                       .balance = values("balance"),
                       .flips = values("flips"),
                       .weights = {},
                       .horizon = horizon[0],
                       .noise_g = state.contains(at + "/noise_g") ? values("noise_g") : Values(),
                       .noise_dw = {}};
    if (State::Past& p = state_->past[i]; !p.norms.empty()) {
      p.log_g = Sizes(p.g).logs();
      p.log_norms = Sizes(p.norms).logs();
    }
    for (std::size_t k = 0; k < weights.size(); k += 3)
      state_->past[i].weights.push_back({weights[k], weights[k + 1], weights[k + 2]});
    for (std::size_t k = 0; state.contains(fmt::format("{}/noise_dw.{}", at, k)); ++k) {
      state_->past[i].noise_dw.push_back(state.at(fmt::format("{}/noise_dw.{}", at, k)));
    }
  }
}

const std::vector<Tracer::GaugeFault>& Tracer::gauge_faults() const { return state_->faults; }
TraceWriter::Status Tracer::status() const { return state_->writer->status(); }
bool Tracer::flush() { return state_->writer->flush(); }
TraceWriter::Status Tracer::close(const Progress& progress) { return state_->writer->close(true, progress); }

}  // namespace scalevec
