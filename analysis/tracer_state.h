// Private to the tracer's sources.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include <scalevec/analysis/input_moments.h>
#include <scalevec/analysis/traced_vector.h>
#include <scalevec/analysis/tracer.h>
#include <scalevec/analysis/vector_figures.h>

namespace scalevec {

/// What is known from row to row, and how a row is filled (tracer_row.cpp).
struct Tracer::State {
  using Values = std::vector<double>;

  State(std::filesystem::path path, std::vector<TracedVector> given, TraceHeader header,
        const Options& given_options)
      : options(given_options), vectors(std::move(given)), past(vectors.size()) {
    for (std::size_t i = 0; i < vectors.size(); ++i) index[vectors[i].site.address.str()] = i;
    run = header.run;
    header.sites.clear();
    for (const TracedVector& v : vectors) header.sites.push_back(v.site);
    header.columns = Tracer::columns();
    const auto add = [&](const std::vector<TraceColumn>& columns, const std::string& branch, const char* of) {
      for (TraceColumn column : columns) {
        column.name = of_branch(column.name, branch);
        column.description = fmt::format("{} {} alone: {}", of, branch, column.description);
        header.columns.push_back(std::move(column));
      }
    };
    for (const std::string& branch : branches_of_several()) add(branch_columns(), branch, "the map of");
    for (const std::string& branch : branches_with_vectors())
      add(vector_branch_columns(), branch, "the vector of");
    if (options.inputs) {
      inputs.resize(vectors.size());
      told.resize(vectors.size());
      header.columns.insert(header.columns.end(), input_columns().begin(), input_columns().end());
    }
    if (options.curvature)
      header.columns.insert(header.columns.end(), curvature_columns().begin(), curvature_columns().end());
    writer = std::make_unique<TraceWriter>(std::move(path), header, options.writer);
    row = std::make_unique<TraceRow>(writer->layout());
    for (std::size_t c = 0; c < header.columns.size(); ++c) column_of[header.columns[c].name] = c;
    find_pairs();
  }

  // The Frobenius norm of maps over the rows.
  struct WeightNorm {
    double first = 0;  // before the first step
    double largest = 0, peak = 0;
  };
  // What is remembered of a vector from row to row.
  struct Past {
    Values g, norms;                  // in the last row
    Values log_g, log_norms;          // their logarithms, where there are norms
    Values balance;                   // before the first step
    Values flips;                     // of sign, by channel
    std::vector<WeightNorm> weights;  // of all maps together, and of each where there are several
    double horizon = 0;
    Values noise_g;  // in the step before the one to come, where that will ask for its noise:
    std::vector<at::Tensor> noise_dw;  // the vector and the gradients of its maps
  };
  // An output vector and the input vector that one of its maps reads.
  struct Pair {
    std::size_t output, input;
    at::Tensor map;
  };
  // What somebody has measured for the row to come.
  struct Note {
    std::size_t vector, column;
    Values values;
  };
  // A vector between before() and after().
  struct Step {
    Values g, dg;
    std::vector<MapMove> maps;  // consumers, or producers
    UpdateFacts vector;
    double decay = 0;                                         // of g towards 0: the vector's, or beta's
    double noise = std::numeric_limits<double>::quiet_NaN();  // variance of an entry of dL/dA
    // Of the identities, by channel; by group, each with its first row; and of the vector as a whole.
    Values residual, group_residuals;
    double length_residual = std::numeric_limits<double>::quiet_NaN();

    // Gradients of every map: one that is frozen leaves the identities open.
    bool complete() const {
      return std::all_of(maps.begin(), maps.end(),
                         [](const MapMove& move) { return move.then.gradient.defined(); });
    }
    // Of the maps that are not frozen, if any; NaN, or of no known rule, where they do not agree.
    UpdateFacts map() const;
  };

  // "weight_norm_BRANCH" of "experts.up" is "weight_norm_experts_up".
  static std::string of_branch(std::string name, std::string branch) {
    constexpr std::string_view mark = "BRANCH";
    std::replace(branch.begin(), branch.end(), '.', '_');
    return name.replace(name.find(mark), mark.size(), branch);
  }
  std::vector<std::string> branches_of_several() const {
    std::vector<std::string> out;
    for (const TracedVector& v : vectors) {
      for (const TracedMap& map : v.consumers) {
        if (v.consumers.size() > 1 && std::find(out.begin(), out.end(), map.branch) == out.end())
          out.push_back(map.branch);
      }
    }
    return out;
  }

  std::vector<std::string> branches_with_vectors() const {
    std::vector<std::string> out;
    for (const TracedVector& v : vectors) {
      const std::optional<std::string>& branch = v.site.address.branch();
      if (branch && std::find(out.begin(), out.end(), *branch) == out.end()) out.push_back(*branch);
    }
    return out;
  }

  void put(std::string_view name, std::size_t vector, double value) {
    row->column<double>(number_of(name))[vector] = value;
  }
  void put(std::string_view name, std::size_t vector, const Values& values) {
    put(number_of(name), vector, values);
  }
  void put(std::size_t column, std::size_t vector, const Values& values) {
    const std::span<float> all = row->column<float>(column);
    const auto first = static_cast<std::size_t>(row->layout().start()[vector]);
    for (std::size_t j = 0; j < values.size(); ++j) all[first + j] = static_cast<float>(values[j]);
  }
  void put(const Note& note) {
    if (per_channel(note.column)) return put(note.column, note.vector, note.values);
    row->column<double>(note.column)[note.vector] = note.values[0];
  }
  bool per_channel(std::size_t column) const {
    return writer->layout()[column].type == hdf5::Number::f32;  // so the tracer has it
  }
  std::size_t index_of(std::string_view address) const;
  std::size_t number_of(std::string_view column) const;

  void start(std::size_t i, const UpdateView& view);
  void remember_noise(std::size_t i, bool wanted, const UpdateView& view);
  double noise_of(std::size_t i, const Step& begun) const;
  template <class F>
  void each_vector(F&& f);
  // What each_vector calls.
  void finish(std::size_t i, std::int64_t step);
  void shape(std::size_t i, const Values& g, const Sizes& sizes);
  void lost(std::size_t i, const Values& g, const Step& begun, const Lines* sums);
  Values columns(std::size_t i, const Values& g, const Sizes& sizes, Step& begun, const MapStep& maps);
  void invariance(std::size_t i, Step& begun, const MapStep& maps);
  void weights(std::size_t i, std::int64_t step, const MapStep& maps);
  void branches(std::size_t i, const Sizes& sizes, const MapStep& maps);
  void rates(std::size_t i, const Step& begun, const MapStep& maps);
  void coadaptation(std::size_t i, const Values& g, const Values& norms, const Sizes& sizes);
  template <class Name>
  void related(std::size_t i, const Sizes& norms, const Sizes& sizes, Name&& name);
  void neighbours(std::size_t i);
  void find_pairs();
  double left_by_eps(std::size_t output) const;
  void of_inputs(std::size_t i, const Step& begun);
  // Afterwards, in their order.
  void judge(std::size_t i, std::int64_t step);

  Options options;
  std::vector<TracedVector> vectors;
  std::vector<Past> past;
  // Of the row to come or, once `told`, of the last; none where they are not traced.
  std::vector<InputMoments> inputs;
  std::vector<char> told;
  std::int64_t told_in = 0;  // the step of that row
  ResultsFile::Header run;   // of every file that is written
  std::vector<Pair> pairs;
  std::map<std::size_t, std::size_t>
      keys_of;                          // of a vector on queries the one on keys, whose heads divide its
  std::vector<bool> normalised_behind;  // of an input vector: all of its maps are
  std::map<std::string, std::size_t> index;
  std::map<std::string, std::size_t, std::less<>> column_of;
  std::unique_ptr<TraceWriter> writer;
  std::unique_ptr<TraceRow> row;
  std::vector<Step> steps;  // of the row being made
  std::vector<Note> notes;
  std::vector<GaugeFault> faults;
};

// Of the numbers of a row.
inline double sum(std::span<const double> v) { return std::accumulate(v.begin(), v.end(), 0.0); }
inline double mean(const std::vector<double>& v) { return sum(v) / static_cast<double>(v.size()); }
inline double sum_of_squares(const std::vector<double>& v) {
  return std::inner_product(v.begin(), v.end(), v.begin(), 0.0);
}

template <class F>
std::vector<double> each(std::size_t count, F&& f) {
  std::vector<double> out(count);
  for (std::size_t j = 0; j < count; ++j) out[j] = f(j);
  return out;
}

/// Whether the balance of the two is known in closed form (metrics 18 and 20): SGD without momentum.
bool is_plain_sgd(const UpdateFacts& vector, const UpdateFacts& map, const Site& site);

}  // namespace scalevec
