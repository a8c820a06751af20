#include <scalevec/trainer/optimizer.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/selector.h>
#include <scalevec/trainer/adamw.h>
#include <scalevec/trainer/not_finite.h>

namespace scalevec {
namespace {

constexpr std::array<std::string_view, 3> rule_names{"adamw", "sgd", "muon"};

}  // namespace

void check(const OptimizerOptions& options) {
  const auto refuse = [](const char* what, double value, const char* expected) {
    fail(ErrorCode::value, fmt::format("optimizer: {} is {}", what, value),
         {.key = what, .expected = expected, .found = fmt::format("{}", value)});
  };
  const auto in_unit = [&](const char* what, double value) {
    if (!(value >= 0.0 && value < 1.0)) refuse(what, value, "[0, 1)");
  };
  const auto not_negative = [&](const char* what, double value) {
    if (!(value >= 0.0) || std::isinf(value)) refuse(what, value, "0 or more");
  };
  not_negative("learning_rate", options.learning_rate);
  not_negative("weight_decay", options.weight_decay);
  not_negative("clip", options.clip);
  not_negative("eps", options.eps);
  in_unit("beta1", options.beta1);
  in_unit("beta2", options.beta2);
  in_unit("momentum", options.momentum);
  in_unit("muon_momentum", options.muon_momentum);
}

namespace {

// A step multiplies float32 tensors by it.
void check_factor(const std::string& slot, double factor) {
  if (factor <= std::numeric_limits<float>::max()) return;
  fail(ErrorCode::value,
       fmt::format("optimizer: learning rate, its factor and weight decay would multiply '{}' by {}; lower "
                   "them",
                   slot, factor),
       {.tensor = slot, .expected = "at most 3.4e38, the largest of float32"});
}

std::vector<const char*> state_names(Rule rule) {
  if (rule == Rule::adamw) return {"exp_avg", "exp_avg_sq"};
  return {"momentum"};
}

bool fits_own_adamw(const at::Tensor& master) {
  return master.scalar_type() == at::kFloat && master.device().is_cpu() && master.is_contiguous();
}

void move_sgd(Parameter& p, double rate, double weight_decay, double momentum) {
  at::Tensor& buffer = p.state.at("momentum");
  buffer.mul_(momentum).add_(p.gradient);
  if (weight_decay != 0.0) buffer.add_(p.master, weight_decay);
  p.master.add_(buffer, -rate);
}

void move_muon(Parameter& p, double rate, double weight_decay, double momentum) {
  at::Tensor& buffer = p.state.at("momentum");
  buffer.lerp_(p.gradient, 1.0 - momentum);
  const at::Tensor update = orthogonalise(p.gradient.lerp(buffer, momentum));
  if (weight_decay != 0.0) p.master.mul_(1.0 - rate * weight_decay);
  p.master.add_(update.to(p.master.scalar_type()), -rate * muon_stretch(update));
}

}  // namespace

Rule parse_rule(std::string_view text) {
  for (std::size_t i = 0; i < rule_names.size(); ++i) {
    if (text == rule_names[i]) return static_cast<Rule>(i);
  }
  fail(ErrorCode::value, fmt::format("optimizer: rule '{}' is unknown", printable(text)),
       {.expected = fmt::format("{}", fmt::join(rule_names, ", ")), .found = printable(text)});
}

std::string_view rule_name(Rule rule) { return rule_names.at(static_cast<std::size_t>(rule)); }

double muon_stretch(const at::Tensor& matrix) {
  return 0.2 * std::sqrt(static_cast<double>(std::max(matrix.size(-1), matrix.size(-2))));
}

at::Tensor orthogonalise(const at::Tensor& matrix) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315, eps = 1e-7;
  const at::Tensor wide = matrix.scalar_type() == at::kDouble ? matrix : matrix.to(at::kFloat);
  const bool tall = wide.size(-2) > wide.size(-1);
  at::Tensor x = tall ? wide.transpose(-2, -1) : wide;
  x = x.div(x.square().sum({-2, -1}, /*keepdim=*/true).sqrt().clamp_min(eps));
  for (int step = 0; step < 5; ++step) {
    const at::Tensor gram = x.matmul(x.transpose(-2, -1));
    x = x.mul(a).add_((gram.mul(b).add_(gram.matmul(gram), c)).matmul(x));
  }
  return tall ? x.transpose(-2, -1) : x;
}

Optimizer::Optimizer(const ModelSpec& spec, const std::map<std::string, at::Tensor>& leaves,
                     const OptimizerOptions& options, bool pure)
    : options_(options), pure_(pure) {
  check(options);
  const std::vector<ParameterGroup> groups = parameter_groups(spec);
  const auto decay = group_decay(groups, options.weight_decay, options.decay_vectors, options.decay);
  const auto rates = group_rates(groups, options.rates);
  for (const ParameterGroup& group : groups) {
    const Rule rule = options.rule == Rule::muon && group.name != "linear" ? Rule::adamw : options.rule;
    for (const std::string& slot : group.slots) group_index_[slot] = groups_.size();
    groups_.push_back({group, rule, rates.at(group.name), decay.at(group.name)});
  }
  for (const auto& [slot, index] : group_index_) {
    Parameter p{.slot = slot, .leaf = leaves.at(slot), .master = {}, .gradient = {}, .state = {}, .sums = {}};
    const bool widen = !pure && p.leaf.scalar_type() == at::kBFloat16;
    p.master = widen ? p.leaf.detach().to(at::kFloat) : p.leaf.detach();
    for (const char* name : state_names(groups_[index].rule)) {
      p.state[name] = p.master.new_zeros(p.master.sizes());
    }
    const double rate = options.learning_rate * groups_[index].rate;
    check_factor(slot, groups_[index].rule == Rule::muon ? rate * muon_stretch(p.master) : rate);
    check_factor(slot, rate * groups_[index].weight_decay);
    parameters_.push_back(std::move(p));
  }
}

const Parameter& Optimizer::parameter(std::string_view slot) const {
  for (const Parameter& p : parameters_) {
    if (p.slot == slot) return p;
  }
  std::vector<std::string> names;
  for (const Parameter& p : parameters_) names.push_back(p.slot);
  fail(ErrorCode::addr,
       fmt::format("no parameter '{}'; nearest: {}", printable(slot), fmt::join(nearest(slot, names), ", ")),
       {.tensor = printable(slot)});
}

const GroupSettings& Optimizer::group_of(const Parameter& parameter) const {
  return groups_[group_index_.at(parameter.slot)];
}

void Optimizer::accumulate(double factor) {
  const at::NoGradGuard no_grad;
  for (Parameter& p : parameters_) {
    at::Tensor& grad = p.leaf.mutable_grad();
    if (!grad.defined()) continue;
    const at::Tensor wide = grad.to(p.master.scalar_type());
    if (!pending_.contains(p.slot)) {
      p.gradient = factor == 1.0 ? wide : wide.mul(factor);
      pending_.insert(p.slot);
    } else {
      p.gradient.add_(wide, factor);
    }
    grad.reset();
  }
}

double Optimizer::clip() {
  double squares = 0.0;
  for (Parameter& p : parameters_) {
    if (!pending_.contains(p.slot)) p.gradient = p.master.new_zeros(p.master.sizes());
    squares += p.gradient.to(at::kFloat).norm().to(at::kDouble).square().item<double>();
  }
  double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) {
    const Parameter* first = nullptr;  // in the backward pass
    for (const Parameter& p : parameters_) {
      if (p.gradient.isfinite().all().item<bool>()) continue;
      if (!first || comes_before(first->slot, p.slot)) first = &p;
    }
    if (first) {
      forget();  // the next step's gradients are not added to these
      const at::Tensor gradient = first->gradient.flatten();
      const at::Tensor entries = gradient.isfinite().logical_not().nonzero().flatten();
      const auto entry = entries[0].item<std::int64_t>();
      fail(ErrorCode::value,
           fmt::format(
               "training step {}: the gradient of '{}' is not finite in {} of {} entries, first in {}; "
               "nothing was moved. Lower the learning rate, lengthen the warm-up, or clip more",
               steps_ + 1, first->slot, entries.numel(), gradient.numel(), entry),
           {.tensor = first->slot,
            .index = entry,
            .expected = "finite gradients",
            .found = fmt::format("{}", gradient[entry].item<double>())});
    }
    // All are finite, and float32 does not hold their norm.
    squares = 0.0;
    for (const Parameter& p : parameters_)
      squares += p.gradient.to(at::kDouble).square().sum().item<double>();
    norm = std::sqrt(squares);
  }
  if (options_.clip > 0.0) {
    const double share = options_.clip / (norm + 1e-6);
    if (share < 1.0) {
      for (Parameter& p : parameters_) p.gradient.mul_(share);
    }
  }
  return norm;
}

bool Optimizer::takes_sums(const Parameter& p) const {
  return group_of(p).rule == Rule::adamw && fits_own_adamw(p.master) && p.master.dim() > 1;
}

void Optimizer::move(const GroupSettings& group, const std::vector<Parameter*>& members, double rate,
                     const StepWatcher* watcher) {
  const double step = static_cast<double>(steps_), decay = group.weight_decay;
  if (group.rule == Rule::adamw) {
    std::vector<AdamwMove> own;
    std::vector<at::Tensor> masters, gradients, exp_avg, exp_avg_sq;
    for (Parameter* p : members) {
      const at::Tensor &m = p->state.at("exp_avg"), &v = p->state.at("exp_avg_sq");
      if (fits_own_adamw(p->master)) {
        if (watcher && takes_sums(*p) && watcher->wants_sums(*p)) p->sums.emplace();
        own.push_back({p->master, m, v, p->gradient.contiguous(), p->sums ? &*p->sums : nullptr});
        continue;
      }
      masters.push_back(p->master);
      gradients.push_back(p->gradient);
      exp_avg.push_back(m);
      exp_avg_sq.push_back(v);
    }
    adamw(own, step, rate, options_.beta1, options_.beta2, options_.eps, decay);
    if (!masters.empty()) {
      ops::adamw(masters, gradients, exp_avg, exp_avg_sq, step, rate, options_.beta1, options_.beta2,
                 options_.eps, decay);
    }
    return;
  }
  for (Parameter* p : members) {
    if (group.rule == Rule::sgd) {
      move_sgd(*p, rate, decay, options_.momentum);
    } else {
      move_muon(*p, rate, decay, options_.muon_momentum);
    }
  }
}

void Optimizer::sum_over(Collective& ranks) {
  for (Parameter& p : parameters_) {
    if (!pending_.contains(p.slot)) p.gradient = p.master.new_zeros(p.master.sizes());
    pending_.insert(p.slot);
    ranks.sum(p.gradient);
  }
}

StepReport Optimizer::step(double share, StepWatcher* watcher) {
  const at::NoGradGuard no_grad;
  StepReport report;
  report.gradient_norm = clip();
  report.learning_rate = options_.learning_rate * share;
  if (watcher) watcher->before(*this, report.learning_rate);
  pending_.clear();
  ++steps_;
  std::vector<std::vector<Parameter*>> members(groups_.size());
  for (Parameter& p : parameters_) {
    p.sums.reset();
    members[group_index_.at(p.slot)].push_back(&p);
  }
  std::map<std::string, at::Tensor> before;
  if (pure_) {
    for (const Parameter& p : parameters_) before[p.slot] = p.master.clone();
  }
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    move(groups_[i], members[i], report.learning_rate * groups_[i].rate, watcher);
  }
  for (Parameter& p : parameters_) {
    if (pure_) {
      const at::Tensor wanted = p.gradient.ne(0);
      report.entries += wanted.sum().item<std::int64_t>();
      report.lost += p.master.eq(before.at(p.slot)).logical_and_(wanted).sum().item<std::int64_t>();
    }
    copy_to_leaf(p);
  }
  if (watcher) watcher->after(*this, report);
  return report;
}

void Optimizer::copy_to_leaf(Parameter& p) const {
  if (!p.master.is_alias_of(p.leaf)) p.leaf.detach().copy_(p.master);
}

std::map<std::string, at::Tensor> Optimizer::masters() const {
  std::map<std::string, at::Tensor> out;
  for (const Parameter& p : parameters_) out[p.slot] = p.master;
  return out;
}

std::map<std::string, at::Tensor> Optimizer::tensors() const {
  std::map<std::string, at::Tensor> out = masters();
  for (const Parameter& p : parameters_) {
    for (const auto& [name, tensor] : p.state) out[p.slot + "/" + name] = tensor;
  }
  return out;
}

void Optimizer::restore(const std::map<std::string, at::Tensor>& tensors, std::int64_t steps) {
  const auto own = this->tensors();
  for (const auto& [name, target] : own) {
    const auto found = tensors.find(name);
    if (found == tensors.end() || found->second.sizes() != target.sizes() ||
        found->second.scalar_type() != target.scalar_type()) {
      fail(ErrorCode::config,
           fmt::format("resuming: the checkpoint has no '{}' of this run's shape and dtype: it belongs to "
                       "another experiment",
                       name),
           {.tensor = name,
            .expected = fmt::format("{} [{}]", c10::toString(target.scalar_type()),
                                    fmt::join(target.sizes(), ", "))});
    }
  }
  if (tensors.size() != own.size()) {
    fail(ErrorCode::config, fmt::format("resuming: the checkpoint holds {} tensors, this run has {}",
                                        tensors.size(), own.size()));
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, target] : own) target.copy_(tensors.at(name));
  for (Parameter& p : parameters_) copy_to_leaf(p);
  pending_.clear();
  steps_ = steps;
}

}  // namespace scalevec
