#include <scalevec/analysis/tracer.h>

#include <algorithm>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/analysis/tracer_state.h>
#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

using Values = std::vector<double>;

at::Tensor tensor_of(const Values& values) {
  at::Tensor out = ops::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<double>());
  return out;
}
Values doubles_of(const at::Tensor& t) {
  const at::Tensor host = t.to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

}  // namespace

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
  state_ = std::make_unique<State>(std::move(path), std::move(vectors), std::move(header), options);
}

Tracer::~Tracer() = default;

bool Tracer::due(std::int64_t step) const { return step % state_->options.every == 0 || step == 1; }

void Tracer::see(std::string_view address, const at::Tensor& normalized) {
  State& s = *state_;
  const auto found = s.index.find(std::string(address));
  if (found == s.index.end()) {
    fail(ErrorCode::addr, fmt::format("tracer: no vector '{}' is traced", printable(address)),
         {.tensor = printable(address)});
  }
  if (s.inputs.empty()) return;
  const std::int64_t width = s.vectors[found->second].site.width;
  if (normalized.dim() < 1 || normalized.size(-1) != width) {
    fail(ErrorCode::shape,
         fmt::format("tracer: inputs of '{}' are [{}]; its vector has {} channels", address,
                     fmt::join(normalized.sizes(), ", "), width),
         {.tensor = std::string(address)});
  }
  const at::NoGradGuard no_grad;
  s.inputs[found->second].add(normalized);
}

void Tracer::before(std::int64_t step, const UpdateView& view) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.steps.clear();
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    // Of a vector with components beta is what decays towards the target.
    const UpdateFacts facts = view(s.vectors[i].beta.defined() ? s.vectors[i].beta : s.vectors[i].stored);
    if (facts.gradient.defined()) s.past[i].horizon += facts.rate * facts.weight_decay;
  }
  if (!due(step)) return;
  for (std::size_t i = 0; i < s.vectors.size(); ++i) s.start(i, view);
}

void Tracer::after(std::int64_t step, const UpdateView& view) {
  State& s = *state_;
  if (s.steps.empty()) return;
  const at::NoGradGuard no_grad;
  s.row->clear();
  std::vector<Values> all;
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    s.finish(i, step, view);
    all.push_back(s.past[i].g);
  }
  for (std::size_t i = 0; i < s.vectors.size(); ++i) s.neighbours(i, all);
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
    out[at + "/sums"] = tensor_of({p.weight_norm, p.horizon, p.flips});
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
           fmt::format("tracer: the state has nothing of '{}': it is of another model", at), {.tensor = at});
    };
    const Values sums = values("sums");
    if (sums.size() != 3) fail(ErrorCode::config, "tracer: the state is damaged", {.tensor = at});
    state_->past[i] = {.g = values("g"),
                       .norms = values("norms"),
                       .balance = values("balance"),
                       .weight_norm = sums[0],
                       .horizon = sums[1],
                       .flips = sums[2]};
  }
}

const std::vector<Tracer::GaugeFault>& Tracer::gauge_faults() const { return state_->faults; }
TraceWriter::Status Tracer::status() const { return state_->writer->status(); }
bool Tracer::flush() { return state_->writer->flush(); }
TraceWriter::Status Tracer::close() { return state_->writer->close(); }

}  // namespace scalevec
