#include <scalevec/trainer/training_trace.h>

#include <algorithm>
#include <utility>

#include <ATen/core/grad_mode.h>

#include <scalevec/analysis/curvature.h>
#include <scalevec/analysis/forward_trace.h>
#include <scalevec/analysis/text_loss.h>
#include <scalevec/core/checkpoint/slots.h>
#include <scalevec/core/error.h>
#include <scalevec/hooks/override.h>

namespace scalevec {
namespace {

UpdateFacts::Rule rule_of(Rule rule) {
  constexpr UpdateFacts::Rule rules[] = {UpdateFacts::Rule::adamw, UpdateFacts::Rule::sgd,
                                         UpdateFacts::Rule::muon};
  return rules[static_cast<std::size_t>(rule)];
}

UpdateFacts facts_of(const Optimizer& optimizer, const Parameter& p, double learning_rate, double steps) {
  const OptimizerOptions& options = optimizer.options();
  const GroupSettings& group = optimizer.group_of(p);
  UpdateFacts facts;
  facts.rule = rule_of(group.rule);
  facts.rate = learning_rate * group.rate;
  facts.weight_decay = group.weight_decay;
  facts.momentum = group.rule == Rule::adamw ? options.beta1
                   : group.rule == Rule::sgd ? options.momentum
                                             : options.muon_momentum;
  facts.beta2 = options.beta2;
  facts.eps = options.eps;
  facts.steps = steps;
  if (group.rule == Rule::muon) facts.stretch = muon_stretch(p.master);
  facts.gradient = p.gradient;
  facts.sums_follow = optimizer.takes_sums(p);
  facts.sums = p.sums ? &*p.sums : nullptr;
  if (group.rule == Rule::adamw) {
    facts.exp_avg = p.state.at("exp_avg");
    facts.exp_avg_sq = p.state.at("exp_avg_sq");
  }
  return facts;
}

Tracer::Options tracing(const Experiment& e, const TraceWriter::Options& writer) {
  if (e.trace.every < 1)
    fail(ErrorCode::value,
         "tracing a training: its experiment asks for no trace; set trace.every to 1 or more",
         {.key = "trace.every", .expected = "1 or more", .found = std::to_string(e.trace.every)});
  Tracer::Options options{
      .every = e.trace.every, .inputs = e.trace.inputs, .curvature = e.trace.curvature > 0, .writer = writer};
  if (e.train.precision != "float32") options.gauge_tolerance = 0.0;  // bfloat16 gradients cannot tell
  return options;
}

}  // namespace

std::vector<TracedVector> traced_vectors(const ModelSpec& spec, const Optimizer& optimizer) {
  return traced_vectors(spec, optimizer.masters());
}

std::vector<TracedVector> traced_vectors(const ModelSpec& spec,
                                         const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TracedVector> out;
  for (const Site& site : spec.sites()) {
    if (site.width == 0) continue;
    const std::string slot = site.address.str();
    const bool one = in_one_tensor(site.parametrisation);
    TracedVector v{.site = site,
                   .stored = tensors.at(slot + (one ? ".weight" : ".alpha")),
                   .beta = one ? at::Tensor() : tensors.at(slot + ".beta"),
                   .consumers = {},
                   .producers = {}};
    // A tied head's gradient is the embedding's as well; behind a mixture stands a sum of maps, weighted by a
    // router.
    const auto add = [&](std::vector<TracedMap>& to, const std::vector<Link>& links) {
      for (const Link& link : links) {
        if (link.branch == "head" && spec.tied_head) continue;
        const std::string weight = weight_slot(spec, site, link);
        std::string bias = weight;
        bias.replace(bias.rfind(".weight"), std::string::npos, ".bias");
        to.push_back({link.branch, tensors.at(weight), tensors.contains(bias)});
      }
    };
    const bool of_mixture = std::any_of(site.producers.begin(), site.producers.end(),
                                        [](const Link& link) { return link.branch.starts_with("experts."); });
    add(v.consumers, site.consumers);
    if (!of_mixture) add(v.producers, site.producers);
    out.push_back(std::move(v));
  }
  return out;
}

TrainingTrace::TrainingTrace(Training& training, std::filesystem::path path, TraceHeader header,
                             TraceWriter::Options writer, Progress progress)
    : training_(training),
      progress_(std::move(progress)),
      tracer_(std::move(path), traced_vectors(training.model().spec(), training.optimizer()),
              std::move(header), tracing(training.experiment(), writer)),
      forward_(training.model(),
               std::make_shared<ForwardTrace>(training.model(), tracer_, training.experiment().trace.inputs,
                                              [&training] { return training.steps_done() + 1; })) {
  for (const TracedVector& v : traced_vectors(training.model().spec(), training.optimizer())) {
    for (const TracedMap& map : v.consumers) read_.insert(map.weight.unsafeGetTensorImpl());
  }
  training_.watch(this);
}

TrainingTrace::~TrainingTrace() { training_.watch(nullptr); }

// On a copy in float64, in which differences of gradients keep ten digits.
void TrainingTrace::note_curvature() {
  const ModelSpec& spec = training_.model().spec();
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [slot, master] : training_.optimizer().masters())
    tensors[slot] = master.detach().to(at::kCPU, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  Transformer model(spec, tensors, {.compute = at::kDouble});
  const std::int64_t context = training_.experiment().data.context;
  const at::Tensor windows = training_.next_windows(training_.experiment().trace.curvature_windows);
  const at::Tensor ids = windows.narrow(1, 0, context), targets = windows.narrow(1, 1, context).contiguous();
  const std::vector<TracedVector> vectors = traced_vectors(spec, tensors);
  std::size_t done = 0;
  const Gradients gradients = [&](const std::vector<at::Tensor>& moving) {
    report(progress_, "measuring curvature", done, vectors.size());
    for (const at::Tensor& t : moving) t.mutable_grad() = at::Tensor();
    const at::AutoGradMode enabled(true);
    backward_loss(model, ids, targets, moving, 1.0 / static_cast<double>(targets.numel()));
    std::vector<at::Tensor> out;
    for (const at::Tensor& t : moving) out.push_back(t.grad());
    return out;
  };
  for (const TracedVector& v : vectors) {
    const std::string& address = v.site.address.str();
    const at::Tensor g = model.scales().at(address).effective().to(at::kDouble).clone().requires_grad_();
    const Override lending(model, {{address, g}}, {.allow_nonfinite = true});
    std::vector<at::Tensor> maps;
    for (const TracedMap& map : v.beside()) maps.push_back(map.weight.requires_grad_());
    note(tracer_, address, curvature(g, maps, gradients));
    for (const at::Tensor& map : maps) map.requires_grad_(false);
    ++done;
  }
  report(progress_, "measuring curvature", done, vectors.size());
}

UpdateView TrainingTrace::view(const Optimizer& optimizer, double learning_rate, double steps) const {
  std::map<const void*, const Parameter*> by_tensor;
  for (const Parameter& p : optimizer.parameters()) by_tensor[p.master.unsafeGetTensorImpl()] = &p;
  return [&optimizer, learning_rate, steps, by_tensor = std::move(by_tensor)](const at::Tensor& tensor) {
    return facts_of(optimizer, *by_tensor.at(tensor.unsafeGetTensorImpl()), learning_rate, steps);
  };
}

void TrainingTrace::before(const Optimizer& optimizer, double learning_rate) {
  const std::int64_t done = optimizer.steps(), every = training_.experiment().trace.curvature;
  if (every > 0 && (done == 0 || (done + 1) % every == 0)) note_curvature();
  tracer_.before(done + 1, view(optimizer, learning_rate, static_cast<double>(done)));
}

bool TrainingTrace::wants_sums(const Parameter& parameter) const {
  return read_.contains(parameter.master.unsafeGetTensorImpl()) && tracer_.due(training_.optimizer().steps());
}

void TrainingTrace::after(const Optimizer& optimizer, const StepReport& report) {
  const std::int64_t done = optimizer.steps();
  tracer_.after(done, view(optimizer, report.learning_rate, static_cast<double>(done - 1)));
}

}  // namespace scalevec
