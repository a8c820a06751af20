#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/analysis/spectrum.h>
#include <scalevec/analysis/tracer.h>

namespace scalevec {

/// The loss's curvature beside one norm (metrics 34 and 36 of docs/trace_metrics.md): of its effective
/// vector, of the maps beside it, and of both together.
struct Curvature {
  std::vector<double> g, gradient;  // dL/dg on the predictions that the Hessian is of
  Spectrum vector;
  std::optional<Spectrum> maps, joint;  // nothing where the site has no maps of its own
};

/// Gradients of a loss in the tensors, in their order and as they stand when it is called.
using Gradients = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& tensors)>;

/// By central differences of gradients: two for each product, 6 x 19 for a site and one more. g and maps:
/// float64 on the host, what `gradients` computes with; they are moved and put back, bit for bit, also after
/// an exception.
Curvature curvature(const at::Tensor& g, const std::vector<at::Tensor>& maps, const Gradients& gradients,
                    const SpectrumOptions& options = {});

/// Puts it into the row to come: `Tracer::curvature_columns`.
void note(Tracer& tracer, std::string_view address, const Curvature& curvature);

}  // namespace scalevec
