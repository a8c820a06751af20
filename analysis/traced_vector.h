#pragma once

#include <optional>
#include <string>
#include <vector>

#include <scalevec/analysis/line_sums.h>
#include <scalevec/analysis/tracer.h>

namespace scalevec {

/// Where the norm on queries may be that stands beside one on keys, "attn.k_norm" or DNP's
/// "attn.k.output_norm", which is the former where there is one head; nowhere beside any other address.
std::vector<std::string> queries_beside(const std::string& keys);

/// Whether each channel has a line of its own in the maps beside it: q/k-norm shares one vector among heads,
/// and what normalises a map's output belongs to its rows together.
bool has_lines(const TracedVector& vector);

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
  Lines sums;                                       // added over the maps
  std::vector<double> frobenius_before, frobenius;  // of each map, before and after the step
  std::vector<std::vector<double>> norms;           // of each of several maps, of its lines, after the step
  std::vector<double> rotation;                     // of each map, radians
  double outputs = 0;                               // rows that one channel feeds, C
  double moments = 0;                               // such rows whose second moments are in the sums
};

/// One map before and after it moved.
struct MapMove {
  at::Tensor before;      // a clone; undefined where the sums are there
  UpdateFacts then, now;  // before the step, with a gradient that stays; after it
};
/// The angle, radians, by which weights W turned that moved by D, from <W, W>, <W, D> and <D, D>.
double rotation(double ww, double wd, double dd);
/// Norms of lines after the step, from their sums.
std::vector<double> norms_after(const Lines& sums);
/// moves: of each map, in their order.
MapStep step_of_columns(const std::vector<TracedMap>& maps, const std::vector<MapMove>& moves);
MapStep step_of_rows(const std::vector<TracedMap>& maps, const std::vector<MapMove>& moves);

}  // namespace scalevec
