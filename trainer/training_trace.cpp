#include <scalevec/trainer/training_trace.h>

#include <algorithm>
#include <utility>

#include <ATen/core/grad_mode.h>

#include <scalevec/core/checkpoint/slots.h>
#include <scalevec/core/observer.h>

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
  if (group.rule == Rule::adamw) {
    facts.exp_avg = p.state.at("exp_avg");
    facts.exp_avg_sq = p.state.at("exp_avg_sq");
  }
  return facts;
}

}  // namespace

std::vector<TracedVector> traced_vectors(const ModelSpec& spec, const Optimizer& optimizer) {
  std::map<std::string, at::Tensor> masters;
  for (const Parameter& p : optimizer.parameters()) masters[p.slot] = p.master;
  std::vector<TracedVector> out;
  for (const Site& site : spec.sites()) {
    if (site.width == 0) continue;
    const std::string slot = site.address.str();
    const bool one = in_one_tensor(site.parametrisation);
    TracedVector v{.site = site,
                   .stored = masters.at(slot + (one ? ".weight" : ".alpha")),
                   .beta = one ? at::Tensor() : masters.at(slot + ".beta"),
                   .consumers = {},
                   .producers = {}};
    // A tied head's gradient is the embedding's as well; behind a mixture stands a sum of maps, weighted by a
    // router.
    const auto add = [&](std::vector<TracedMap>& to, const std::vector<Link>& links) {
      for (const Link& link : links) {
        if (link.branch == "head" && spec.tied_head) continue;
        to.push_back({link.branch, masters.at(weight_slot(spec, site, link))});
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

// Shows the tracer what the maps behind norms read in the forward passes of a training step. Validation
// records no graph.
class TrainingTrace::Inputs final : public NormObserver {
 public:
  Inputs(Training& training, Tracer& tracer) : training_(training), tracer_(tracer) {
    for (const Site& site : training.model().sites())
      read_.push_back(site.width > 0 && !site.consumers.empty() && site.kind != Statistics::none);
    training_.model().observers().add(this);
  }
  ~Inputs() override { training_.model().observers().remove(this); }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  unsigned wants(std::size_t site) const override {
    const bool now = at::GradMode::is_enabled() && tracer_.due(training_.steps_done() + 1);
    return now && read_[site] ? parts::normalized : 0;
  }
  void see(const NormEvent& event) override { tracer_.see(event.site.address.str(), event.normalized); }

 private:
  Training& training_;
  Tracer& tracer_;
  std::vector<bool> read_;
};

TrainingTrace::TrainingTrace(Training& training, std::filesystem::path path, TraceHeader header,
                             Tracer::Options options)
    : training_(training),
      tracer_(std::move(path), traced_vectors(training.model().spec(), training.optimizer()),
              std::move(header), options) {
  if (options.inputs) inputs_ = std::make_unique<Inputs>(training_, tracer_);
  training_.watch(this);
}

TrainingTrace::~TrainingTrace() { training_.watch(nullptr); }

UpdateView TrainingTrace::view(const Optimizer& optimizer, double learning_rate, double steps) const {
  std::map<const void*, const Parameter*> by_tensor;
  for (const Parameter& p : optimizer.parameters()) by_tensor[p.master.unsafeGetTensorImpl()] = &p;
  return [&optimizer, learning_rate, steps, by_tensor = std::move(by_tensor)](const at::Tensor& tensor) {
    return facts_of(optimizer, *by_tensor.at(tensor.unsafeGetTensorImpl()), learning_rate, steps);
  };
}

void TrainingTrace::before(const Optimizer& optimizer, double learning_rate) {
  const std::int64_t done = optimizer.steps();
  tracer_.before(done + 1, view(optimizer, learning_rate, static_cast<double>(done)));
}

void TrainingTrace::after(const Optimizer& optimizer, const StepReport& report) {
  const std::int64_t done = optimizer.steps();
  tracer_.after(done, view(optimizer, report.learning_rate, static_cast<double>(done - 1)));
}

}  // namespace scalevec
