// The paper's theorems (arXiv 2605.26895: 2.2, 3.1, 3.2) where they are exact: gradient flow of a linear
// student, and the gradients of our layers in the same place.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/tensors.h>
#include <support/toy_flow.h>

#include <scalevec/core/model/linear_map.h>
#include <scalevec/core/model/norm_layer.h>

#include <support/check.h>

using toy::Flow;
using toy::Form;
using toy::Matrix;
using toy::State;

namespace {

const std::vector<Form> forms{Form::none,       Form::standard, Form::ap, Form::dp, Form::magnitude_direction,
                              Form::exponential};
const Matrix teacher{2, 3, {1.0, 0.5, -0.3, 0.2, -1.0, 0.8}};

Matrix scalar(double value) { return {1, 1, {value}}; }

double weight(Form form, double target, double t) {
  const Flow flow{form, scalar(target)};
  return flow.effective(flow.at_time(t)).at(0, 0);
}

double loss(Form form, const Matrix& target, double t) {
  const Flow flow{form, target};
  return flow.loss(flow.at_time(t));
}

// What flow conserves, as far as it has moved from there.
double drift(const Flow& flow, const State& s) {
  double worst = 0.0;
  const auto is = [&](double value, double expected) { worst = std::max(worst, std::abs(value - expected)); };
  const toy::Vector g = flow.input_vector(s);
  const auto d = static_cast<double>(g.size());
  if (toy::has_output(flow.form)) {
    for (std::size_t i = 0; i < s.w.rows; ++i) is(s.u[i] * s.u[i] - s.w.row_norm2(i), 1.0);
  }
  for (std::size_t j = 0; j < g.size(); ++j) {
    if (flow.form == Form::standard || flow.form == Form::dp) is(g[j] * g[j] - s.w.column_norm2(j), 1.0);
    // By ER's metric, in which log g_j gains what |w_j|^2 / 2 does, and the mean of the others' besides.
    if (flow.form == Form::exponential)
      is(std::log(g[j]) - 0.5 * s.w.column_norm2(j) - 0.5 * (1.0 - 1.0 / d) * s.w.norm2(), 0.0);
  }
  double length2 = 0.0, sum = 0.0;
  for (const double a : s.alpha) length2 += a * a, sum += a;
  if (flow.form == Form::magnitude_direction) {
    is(s.beta * s.beta - s.w.norm2(), 1.0);
    is(length2, d);
  }
  if (flow.form == Form::exponential) {
    is(s.beta - 0.5 * s.w.norm2(), 0.0);
    is(sum, 0.0);
  }
  return worst;
}

}  // namespace

TEST_CASE("toy flow: effective weights of a scalar teacher") {
  struct Row {
    double target, none, standard, dp;
  };
  for (const Row& row : {Row{0.5, 0.251707, 0.260277, 0.269136},
                         {1.0, 0.503415, 0.569383, 0.641631},
                         {3.0, 1.510244, 2.612175, 2.983201}}) {
    CAPTURE(row.target);
    CHECK(std::abs(weight(Form::none, row.target, 0.7) - row.none) < 5e-7);
    CHECK(std::abs(weight(Form::standard, row.target, 0.7) - row.standard) < 5e-7);
    CHECK(std::abs(weight(Form::dp, row.target, 0.7) - row.dp) < 5e-7);
    // With one output and one input, rows and columns are one.
    CHECK(weight(Form::ap, row.target, 0.7) == doctest::Approx(weight(Form::standard, row.target, 0.7)));
  }
}

TEST_CASE("toy flow: losses of a teacher of two outputs and three inputs") {
  struct Row {
    Form form;
    double half, one;
  };
  for (const Row& row : {Row{Form::none, 0.555498, 0.204356},
                         {Form::standard, 0.490392, 0.101162},
                         {Form::dp, 0.393807, 0.025125},
                         {Form::magnitude_direction, 0.380932, 0.026400}}) {
    CAPTURE(static_cast<int>(row.form));
    CHECK(std::abs(loss(row.form, teacher, 0.5) - row.half) < 5e-7);
    CHECK(std::abs(loss(row.form, teacher, 1.0) - row.one) < 5e-7);
  }
  // Without vectors, exactly.
  CHECK(loss(Form::none, teacher, 1.0) ==
        doctest::Approx(0.5 * std::exp(-2.0) * teacher.norm2()).epsilon(1e-12));
}

TEST_CASE("toy flow: what each form conserves") {
  for (const Form form : forms) {
    CAPTURE(static_cast<int>(form));
    const Flow flow{form, teacher};
    for (const double t : {0.1, 0.5, 1.0}) CHECK(drift(flow, flow.at_time(t)) < 1e-10);
  }
}

TEST_CASE("toy flow: a vector is faster at all times, and two are faster than one") {
  for (const double t : {0.05, 0.2, 0.5, 1.0, 2.0}) {
    CAPTURE(t);
    const double none = loss(Form::none, teacher, t), standard = loss(Form::standard, teacher, t);
    CHECK(standard < none);
    CHECK(loss(Form::ap, teacher, t) < none);
    CHECK(loss(Form::dp, teacher, t) < standard);
    CHECK(loss(Form::magnitude_direction, teacher, t) < standard);
  }
}

TEST_CASE("toy flow: what the first difference in loss is, as t^3") {
  double rows = 0.0, columns = 0.0;
  for (std::size_t i = 0; i < teacher.rows; ++i) rows += std::pow(teacher.row_norm2(i), 2);
  for (std::size_t j = 0; j < teacher.columns; ++j) columns += std::pow(teacher.column_norm2(j), 2);
  const double all = std::pow(teacher.norm2(), 2), d = static_cast<double>(teacher.columns);
  struct Row {
    Form form, against;
    double sum;
  };
  for (const Row& row : {Row{Form::standard, Form::none, columns},
                         {Form::ap, Form::none, rows},
                         {Form::dp, Form::standard, rows},
                         {Form::magnitude_direction, Form::standard, (1.0 - 1.0 / d) * all},
                         {Form::exponential, Form::standard, (1.0 - 1.0 / d) * all}}) {
    CAPTURE(static_cast<int>(row.form));
    const auto over_cube = [&](double t) {
      return (loss(row.form, teacher, t) - loss(row.against, teacher, t)) / (t * t * t);
    };
    // At t = 0.01 the next term, in t^4, is up to 3 % of the first; two times take it off.
    const double first = 2.0 * over_cube(0.005) - over_cube(0.01);
    CHECK(over_cube(0.01) == doctest::Approx(-2.0 / 3.0 * row.sum).epsilon(0.03));
    CHECK(first == doctest::Approx(-2.0 / 3.0 * row.sum).epsilon(5e-4));
  }
}

TEST_CASE("toy flow: closed flows of one number") {
  // a' = sqrt(1 + 4 a^2) (w* - a); with two vectors a = m (1 + m^2), and its speed is 1 + 4 m^2 + 3 m^4.
  for (const double target : {0.5, 1.0, 3.0}) {
    CAPTURE(target);
    const double standard =
        toy::integrate([&](double a) { return std::sqrt(1.0 + 4.0 * a * a) * (target - a); }, 0.7);
    CHECK(weight(Form::standard, target, 0.7) == doctest::Approx(standard).epsilon(1e-11));
    // a' = (1 + 3 m^2) m', so m' = (1 + m^2) (w* - a).
    const double m =
        toy::integrate([&](double x) { return (1.0 + x * x) * (target - x * (1.0 + x * x)); }, 0.7);
    CHECK(weight(Form::dp, target, 0.7) == doctest::Approx(m * (1.0 + m * m)).epsilon(1e-11));
  }
  // Columns of one length: A = theta W*, theta' = sqrt(1 + 4 k r theta^2) (1 - theta), r their square, k = 1
  // or, under OR, d.
  const Matrix even{2, 3, {0.6, -0.8, 1.0, 0.8, 0.6, 0.0}};
  for (const Form form : {Form::standard, Form::magnitude_direction}) {
    CAPTURE(static_cast<int>(form));
    const double k = form == Form::standard ? 1.0 : 3.0;
    const double theta =
        toy::integrate([&](double x) { return std::sqrt(1.0 + 4.0 * k * x * x) * (1.0 - x); }, 0.7);
    const Flow flow{form, even};
    const Matrix a = flow.effective(flow.at_time(0.7));
    for (std::size_t n = 0; n < a.values.size(); ++n)
      CHECK(std::abs(a.values[n] - theta * even.values[n]) < 1e-11);
  }
}

TEST_CASE("toy flow: closed forms of the Hessian are those of differences") {
  const toy::Vector g{1.3, -0.4, 0.9}, w{0.2, 1.1, -0.7}, target{1.0, -0.5, 0.3};
  const Flow flow{Form::standard, {1, 3, target}};
  constexpr std::size_t n = 6;
  const auto gradient = [&](const toy::Vector& at) {
    State s = flow.start();
    s.alpha.assign(at.begin(), at.begin() + 3);
    s.w.values.assign(at.begin() + 3, at.end());
    const State d = flow.gradient(s);
    toy::Vector out = d.alpha;
    out.insert(out.end(), d.w.values.begin(), d.w.values.end());
    return out;
  };
  toy::Vector here = g;
  here.insert(here.end(), w.begin(), w.end());
  // Gradients are cubic: five points are exact, up to rounding over h.
  Matrix hessian{n, n, toy::Vector(n * n)};
  constexpr double h = 1e-2;
  for (std::size_t j = 0; j < n; ++j) {
    const auto moved = [&](double by) {
      toy::Vector there = here;
      there[j] += by;
      return gradient(there);
    };
    const toy::Vector a = moved(h), b = moved(-h), c = moved(2 * h), e = moved(-2 * h);
    for (std::size_t i = 0; i < n; ++i) hessian.at(i, j) = (8 * (a[i] - b[i]) - (c[i] - e[i])) / (12 * h);
  }
  const toy::HessianForms closed(g, w, target);
  double trace = 0.0;
  for (std::size_t i = 0; i < n; ++i) trace += hessian.at(i, i);
  CHECK(closed.trace == doctest::Approx(trace).epsilon(1e-11));
  CHECK(closed.frobenius2 == doctest::Approx(hessian.norm2()).epsilon(1e-11));
  // The largest, not the largest in size: that of H + |H|, by repeated multiplication.
  const double shift = std::sqrt(hessian.norm2());
  toy::Vector x{1, 2, 3, -1, -2, 4};
  double largest = 0.0;
  for (int step = 0; step < 20'000; ++step) {
    toy::Vector y(n);
    double size = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      y[i] = shift * x[i];
      for (std::size_t j = 0; j < n; ++j) y[i] += hessian.at(i, j) * x[j];
      size += y[i] * y[i];
    }
    for (std::size_t i = 0; i < n; ++i) x[i] = y[i] / std::sqrt(size);
    largest = std::sqrt(size) - shift;
  }
  CHECK(closed.largest == doctest::Approx(largest).epsilon(1e-10));
}

TEST_CASE("toy flow: our layers have the gradients that flow follows") {
  using namespace scalevec;
  constexpr std::int64_t rows = 2, width = 3;
  // Unit vectors, whose normalised second moment is the identity without a limit.
  at::Tensor x = normal({width, width}, 1).mul(0.0);
  for (std::int64_t j = 0; j < width; ++j) x[j][j] = 1.0;
  const at::Tensor wanted = x.mul(std::sqrt(3.0)).matmul(tensor(teacher.values, {rows, width}).t());

  for (const Form form : forms) {
    CAPTURE(static_cast<int>(form));
    const Flow flow{form, teacher};
    State s = flow.at_time(0.4);
    // Off the path of flow, where its conserved quantities would hide mistakes.
    if (toy::has_output(form)) s.u[1] += 0.3;
    if (toy::has_input(form)) s.alpha[0] -= 0.4, s.alpha[2] += 0.2;
    if (toy::has_components(form)) s.beta += 0.5;
    const State expected = flow.gradient(s);

    NormSpec input{.eps = 0.0, .group = width, .width = toy::has_input(form) ? width : 0};
    if (form == Form::magnitude_direction) input.parametrisation = Parametrisation::magnitude_direction;
    if (form == Form::exponential) input.parametrisation = Parametrisation::exponential;
    const NormSpec output{.statistics = Statistics::none, .group = rows, .width = rows};
    std::map<std::string, at::Tensor> leaves{{"w", tensor(s.w.values, {rows, width})}};
    if (toy::has_output(form)) leaves["u"] = tensor(s.u, {rows});
    if (toy::has_input(form)) leaves["alpha"] = tensor(s.alpha, {width});
    if (toy::has_components(form)) leaves["beta"] = vector_of({s.beta});
    for (auto& [name, leaf] : leaves) leaf.requires_grad_();

    const InputNorm before{NormLayer(0, input, leaves["alpha"], {}, leaves["beta"]), {std::nullopt}};
    LinearMap map{leaves["w"], {}, std::nullopt};
    if (toy::has_output(form)) map.output.emplace(1, output, leaves["u"], at::Tensor(), at::Tensor());
    const std::vector<Site> sites(2);
    const ObserverList nobody;
    const Watchers watch(sites, nobody);
    const at::Tensor y = map(before(x, watch)[0], watch);
    const at::Tensor loss = (y - wanted).square().sum() / (2.0 * width);
    CHECK(loss.item<double>() == doctest::Approx(flow.loss(s)).epsilon(1e-14));
    loss.backward();

    const auto agrees = [&](const char* name, const toy::Vector& values) {
      CAPTURE(name);
      const at::Tensor& leaf = leaves.at(name);
      const at::Tensor difference = leaf.grad() - tensor(values, leaf.sizes());
      CHECK(difference.abs().max().item<double>() < 1e-14 * std::sqrt(teacher.norm2()));
    };
    agrees("w", expected.w.values);
    if (toy::has_output(form)) agrees("u", expected.u);
    if (toy::has_input(form)) agrees("alpha", expected.alpha);
    if (toy::has_components(form)) agrees("beta", {expected.beta});
  }
}
