// What a row of the tracer holds; the numbers are those of the metric list (docs/trace_metrics.md).
#include <scalevec/analysis/tracer.h>

#include <utility>

namespace scalevec {
namespace {

TraceColumn per_site(std::string name, const char* unit, std::string description) {
  return {std::move(name), unit, std::move(description), TraceColumn::Per::site, TraceColumn::Type::f64};
}
TraceColumn per_channel(const char* name, const char* unit, const char* description) {
  return {name, unit, description, TraceColumn::Per::channel, TraceColumn::Type::f32};
}

}  // namespace

const std::vector<TraceColumn>& Tracer::columns() {
  static const std::vector<TraceColumn> list = {
      per_channel("effective", "1", "g, after the step (1)"),
      per_channel("column_norm", "1",
                  "N: norm over the maps of the channel's column (row for output scales) (8)"),
      per_channel("precond_iso", "1", "g^2 (9)"),
      per_channel("precond_radial", "1", "g^2 + N^2 (9)"),
      per_channel("precond_condition", "1", "1 + N^2 / g^2 (9)"),
      per_channel("radial_align", "1", "squared cosine of the map's column and its gradient (15)"),
      per_channel("balance", "1", "s = g^2 - N^2 (16)"),
      per_channel("balance_drift", "1", "s less its value before the first step (16)"),
      per_channel("gauge_residual", "1", "|g dL/dg - sum <W, dL/dW>| / sum |W dL/dW| (17)"),
      per_channel("balance_change", "1", "s after less s before this step (18)"),
      per_channel("balance_decay", "1",
                  "its part by decay, SGD without momentum: 2 eta (lambda N^2 - mu g^2) (18)"),
      per_channel("balance_step", "1", "its part by the finite step, SGD without momentum (18)"),
      per_channel("elr", "learning rate",
                  "effective learning rate of the column by the optimizer's rule (22)"),
      per_channel("elr_state", "learning rate",
                  "AdamW: eta g^2 mean 1 / (sqrt(v) + eps), of the real state (22)"),
      per_channel("rel_update", "1", "|dA| / |A| of the effective column, measured (23)"),
      per_channel("channel_share", "1", "|g dW| / (|g dW| + |W dg|) (24)"),
      per_channel("channel_cosine", "1", "cosine of g dW and W dg (24)"),
      per_channel("channel_flips", "1",
                  "how often the sign of g changed from row to row, from before the first step on (32)"),
      per_channel("saliency", "nats", "|g dL/dg| (36)"),
      per_site("nonfinite", "1",
               "channels with NaN or infinities, in g, dL/dg, or the maps and their gradients; 0: none"),
      per_site("nonfinite_channel", "1", "the first of them"),
      per_site("nonfinite_tensor", "1",
               "where in it, first before the step: 1: g, 2: dL/dg, 3: a map, 4: a map's gradient"),
      per_site("mean", "1", "of g (2)"),
      per_site("magnitude", "1", "|g| / sqrt(d), the rms of g (2, 3)"),
      per_site("min", "1", "of g (2)"),
      per_site("max", "1", "of g (2)"),
      per_site("negative", "1", "share of entries below 0 (2)"),
      per_site("near_zero", "1", "share of entries with |g| < 1e-3 (2)"),
      per_site("rotation", "rad", "angle between g now and in the last row (4)"),
      per_site("log_spread", "1", "standard deviation of log|g| (5)"),
      per_site("participation", "1", "(sum g^2)^2 / (d sum g^4) (6)"),
      per_site("gini", "1", "of |g| (6)"),
      per_site("kurtosis", "1", "excess (6)"),
      per_site("precond_gain", "1", "(C sum g^2 + sum N^2) / (C d): mean eigenvalue (10)"),
      per_site("precond_dispersion", "1", "max g^2 / min g^2 (11)"),
      per_site("precond_log_spread", "1", "standard deviation of log g^2 (11)"),
      per_site("dual_log_mean", "1", "output vectors: mean log (ga gb)^2 of the map (12)"),
      per_site("dual_log_sd_row", "1", "output vectors: standard deviation of log ga^2 (12)"),
      per_site("dual_log_sd_column", "1", "output vectors: standard deviation of log gb^2 (12)"),
      per_site("metric_min", "1", "OR, ER: smallest eigenvalue of what the form does to dL/dg (13)"),
      per_site("metric_max", "1", "OR, ER: largest (13)"),
      per_site("amplification", "1", "R = (D_W + D_g) / |G|^2 (14)"),
      per_site("vector_share", "1", "D_g / (D_W + D_g) (14)"),
      per_site("scale_inv_residual", "1", "output norms: |<W, dW>| / (|W| |dW|) of a group, largest (19)"),
      per_site("length_residual", "1",
               "input vectors whose maps are all normalised behind: |<g, dL/dg>| / sum |W dL/dW| (19)"),
      per_site("wd_balance", "1", "lambda sum N^2 / (mu sum g^2), where decay takes g to 0 (20)"),
      per_site("noise_balance", "1",
               "sum g^2 / sum N^2 that noise and decay lead to, SGD without momentum: (2 lambda + eta s^2) / "
               "(2 mu + C eta s^2), s^2 from the last step's gradients (20)"),
      per_site("decay_horizon", "1",
               "H: sum of learning rate x decay of the vector so far; SGD: over 1 - momentum (21)"),
      per_site("decay_target", "1", "where decay takes g (21)"),
      per_site("weight_rotation", "rad",
               "angle by which the maps turned in this step, root mean square (25)"),
      per_site("rotation_ratio", "1",
               "where maps decay: the same over its equilibrium sqrt(2 eta lambda (1 - b1) / (1 + b1)), b1 0 "
               "but for AdamW (25)"),
      per_site("group_rotation_min", "rad",
               "output norms: smallest angle by which a group of rows turned in this step (25)"),
      per_site("group_rotation_max", "rad", "output norms: largest (25)"),
      per_site("elr_invariant", "learning rate",
               "output norms: eta / |W| of a group (SGD: |W|^2), mean (26)"),
      per_site("log_pearson", "1", "correlation of log|g| and log N (27)"),
      per_site("log_spearman", "1", "the same by rank (27)"),
      per_site("log_slope", "1", "slope of log|g| on log N (27)"),
      per_site("growth_correlation", "1", "of d log|g| and d log N since the last row (28)"),
      per_site("growth_slope", "1", "of d log|g| on d log N since the last row (28)"),
      per_site("growth_prediction", "1", "N^2 / g^2, the flow's slope, mean (28)"),
      per_site("self_amplification", "1",
               "slope of log|g / g in the last row| on log|g in the last row| (29)"),
      per_site("branch_cosine", "1", "mean cosine of g - 1 with the other branches of the norm (30)"),
      per_site("layer_cosine", "1", "cosine of g - mean with the next layer's (30)"),
      per_site("weight_norm", "1", "Frobenius norm of the maps beside the vector (31)"),
      per_site("weight_growth", "1", "the same over its value before the first step (31)"),
      per_site("weight_peak", "step", "the row in which it was largest so far; 0: before the first (31)"),
      per_site("sign_flips", "1", "entries whose sign changed from row to row, summed (32)"),
      per_site("qk_temperature", "1",
               "|gq gk| / sqrt(head dimension), of several heads the root mean square, at the norm on "
               "queries (38)"),
      per_site("qk_logit_bound", "1", "sqrt(head dimension) max |gq gk|, at the norm on queries (38)"),
      per_site("attention_entropy", "nats",
               "mean over heads and positions of the step's first window, at the norm on queries (38)"),
  };
  return list;
}

const std::vector<TraceColumn>& Tracer::branch_columns() {
  static const std::vector<TraceColumn> list = {
      per_channel("column_norm_BRANCH", "1", "norm of the channel's column (8)"),
      per_site("weight_norm_BRANCH", "1", "Frobenius norm (31)"),
      per_site("weight_growth_BRANCH", "1", "the same over its value before the first step (31)"),
      per_site("weight_peak_BRANCH", "step",
               "the row in which it was largest so far; 0: before the first (31)"),
      per_site("weight_rotation_BRANCH", "rad", "angle by which the map turned in this step (25)"),
      per_site("log_pearson_BRANCH", "1", "correlation of log|g| and the log of the norms (27)"),
      per_site("log_spearman_BRANCH", "1", "the same by rank (27)"),
      per_site("log_slope_BRANCH", "1", "slope of log|g| on the log of the norms (27)"),
  };
  return list;
}

const std::vector<TraceColumn>& Tracer::vector_branch_columns() {
  static const std::vector<TraceColumn> list = {
      per_site("branch_cosine_BRANCH", "1", "cosine of g - 1 with that of the vector of BRANCH (30)"),
  };
  return list;
}

const std::vector<TraceColumn>& Tracer::input_columns() {
  static const std::vector<TraceColumn> list = {
      per_channel("input_moment", "1", "S_jj of S = E[x x^T], x what the maps read before the vector (33)"),
      per_site("input_condition", "1", "largest over smallest eigenvalue of S; infinite: S is singular (33)"),
      per_site("scaled_input_condition", "1", "the same of diag(g) S diag(g) (33)"),
      per_site("jacobi_gap", "1", "standard deviation of log(g^2 S_jj); 0: g is Jacobi's scaling (33)"),
  };
  return list;
}

const std::vector<TraceColumn>& Tracer::curvature_columns() {
  static const std::vector<TraceColumn> list = [] {
    std::vector<TraceColumn> out{
        per_channel("log_curvature", "nats",
                    "h = g^2 H_jj + g dL/dg: second derivative of the loss in log g, estimated (36)"),
        per_channel("log_curvature_error", "nats", "its standard error (36)")};
    for (const auto& [block, of] : std::vector<std::pair<std::string, std::string>>{
             {"vector", "g"}, {"maps", "W"}, {"joint", "g and W"}}) {
      const auto add = [&, &block = block](const char* name, const std::string& description) {
        out.push_back(per_site(block + name, "nats", description));
      };
      add("_sharpness", "largest eigenvalue of the Hessian in " + of + ", by Lanczos (34)");
      add("_sharpness_bound", "an eigenvalue is within this of it (34)");
      add("_trace", "trace of the Hessian in " + of + ", estimated (34)");
      add("_trace_error", "its standard error (34)");
      add("_frobenius", "Frobenius norm of the Hessian in " + of + ", estimated (34)");
    }
    return out;
  }();
  return list;
}

}  // namespace scalevec
