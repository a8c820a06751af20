#pragma once

#include <optional>
#include <vector>

#include <scalevec/analysis/line_sums.h>
#include <scalevec/analysis/tracer.h>

namespace scalevec {

/// The effective vector, from the tensors as they are, float64.
std::vector<double> effective_values(const TracedVector& vector);

/// dL/dg from the gradients of what is stored. OR: the part across g from alpha's, the part along it from
/// beta's; ER: g dL/dg = dL/dalpha + dL/dbeta / d. Empty if a gradient is missing; NaN where ER's g or OR's
/// beta is 0, since g then says nothing.
std::vector<double> effective_gradient(const TracedVector& vector, const at::Tensor& d_stored,
                                       const at::Tensor& d_beta);

/// The maps beside one vector in one step: sums of each of the vector's channels, over the columns of what
/// reads the norm, or the rows of what it scales.
struct MapStep {
  Lines sums;                     // added over the maps
  std::vector<double> frobenius;  // of each map, after the step
  std::vector<double> rotation;   // of each map, radians
  double outputs = 0;             // rows that one channel feeds, C
};

/// before: clones of the maps' weights, in their order; gradient: of each, undefined for none.
MapStep step_of_columns(const std::vector<TracedMap>& maps, const std::vector<at::Tensor>& before,
                        const std::vector<at::Tensor>& gradients);
MapStep step_of_rows(const std::vector<TracedMap>& maps, const std::vector<at::Tensor>& before,
                     const std::vector<at::Tensor>& gradients);

}  // namespace scalevec
