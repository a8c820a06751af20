// Gradient flow of a linear student in the setting of arXiv 2605.26895, section 2.1, in plain float64: inputs
// whose normalised second moment is the identity, a teacher W* and squared loss, so that L = |A - W*|^2 / 2
// for the effective matrix A = diag(u) W diag(g).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

namespace toy {

/// Which vectors there are, and how the input vector is stored.
enum class Form {
  none,                 // A = W
  standard,             // A = W diag(g)
  ap,                   // A = diag(u) W
  dp,                   // A = diag(u) W diag(g)
  magnitude_direction,  // as standard, g = beta sqrt(d) alpha / |alpha|
  exponential,          // as standard, g = exp(beta) exp(alpha - mean(alpha))
};

inline bool has_output(Form form) { return form == Form::ap || form == Form::dp; }
inline bool has_input(Form form) { return form != Form::none && form != Form::ap; }
inline bool has_components(Form form) {
  return form == Form::magnitude_direction || form == Form::exponential;
}

using Vector = std::vector<double>;

/// Row by row.
struct Matrix {
  std::size_t rows = 0, columns = 0;
  Vector values;

  double& at(std::size_t i, std::size_t j) { return values[i * columns + j]; }
  double at(std::size_t i, std::size_t j) const { return values[i * columns + j]; }
  double row_norm2(std::size_t i) const {
    double sum = 0.0;
    for (std::size_t j = 0; j < columns; ++j) sum += at(i, j) * at(i, j);
    return sum;
  }
  double column_norm2(std::size_t j) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < rows; ++i) sum += at(i, j) * at(i, j);
    return sum;
  }
  double norm2() const { return std::inner_product(values.begin(), values.end(), values.begin(), 0.0); }
};

/// Everything that flows, or its velocity. Vectors that the form has not stay as they start.
struct State {
  Matrix w;
  Vector u;      // (rows,)
  Vector alpha;  // (columns,): g itself without components
  double beta = 0.0;
};

struct Flow {
  Form form;
  Matrix teacher;

  /// W = 0, effective vectors 1.
  State start() const {
    const bool zero = form == Form::exponential;
    return {{teacher.rows, teacher.columns, Vector(teacher.values.size(), 0.0)},
            Vector(teacher.rows, 1.0),
            Vector(teacher.columns, zero ? 0.0 : 1.0),
            zero ? 0.0 : 1.0};
  }

  Vector input_vector(const State& s) const {
    Vector g = s.alpha;
    const auto d = static_cast<double>(g.size());
    if (form == Form::magnitude_direction) {
      const double length = std::sqrt(std::inner_product(g.begin(), g.end(), g.begin(), 0.0));
      for (double& x : g) x *= s.beta * std::sqrt(d) / length;
    } else if (form == Form::exponential) {
      const double mean = std::accumulate(g.begin(), g.end(), 0.0) / d;
      for (double& x : g) x = std::exp(s.beta + x - mean);
    }
    return g;
  }

  Matrix effective(const State& s) const {
    Matrix a = s.w;
    const Vector g = input_vector(s);
    for (std::size_t i = 0; i < a.rows; ++i) {
      for (std::size_t j = 0; j < a.columns; ++j) a.at(i, j) *= s.u[i] * g[j];
    }
    return a;
  }

  /// A - W*, which is also dL/dA.
  Matrix error(const State& s) const {
    Matrix a = effective(s);
    for (std::size_t k = 0; k < a.values.size(); ++k) a.values[k] -= teacher.values[k];
    return a;
  }

  double loss(const State& s) const { return 0.5 * error(s).norm2(); }

  /// dL/d(state), written by hand; 0 for what the form has not.
  State gradient(const State& s) const {
    const Matrix e = error(s);
    const Vector g = input_vector(s);
    State out{{s.w.rows, s.w.columns, Vector(s.w.values.size())},
              Vector(s.u.size(), 0.0),
              Vector(s.alpha.size(), 0.0),
              0.0};
    Vector d_g(g.size(), 0.0);
    for (std::size_t i = 0; i < e.rows; ++i) {
      for (std::size_t j = 0; j < e.columns; ++j) {
        out.w.at(i, j) = s.u[i] * e.at(i, j) * g[j];
        if (has_output(form)) out.u[i] += e.at(i, j) * s.w.at(i, j) * g[j];
        d_g[j] += e.at(i, j) * s.u[i] * s.w.at(i, j);
      }
    }
    if (!has_input(form)) return out;
    const auto d = static_cast<double>(g.size());
    const double along = std::inner_product(g.begin(), g.end(), d_g.begin(), 0.0);
    const double length2 = std::inner_product(s.alpha.begin(), s.alpha.end(), s.alpha.begin(), 0.0);
    for (std::size_t j = 0; j < g.size(); ++j) {
      if (form == Form::magnitude_direction) {
        out.alpha[j] = s.beta * std::sqrt(d / length2) * d_g[j] - along * s.alpha[j] / length2;
      } else if (form == Form::exponential) {
        out.alpha[j] = g[j] * d_g[j] - along / d;
      } else {
        out.alpha[j] = d_g[j];
      }
    }
    if (form == Form::magnitude_direction) out.beta = along / s.beta;
    if (form == Form::exponential) out.beta = along;
    return out;
  }

  /// The state at time t, by Runge and Kutta's fourth-order rule in steps of h.
  State at_time(double t, double h = 1e-4) const {
    State s = start();
    const auto steps = static_cast<long>(std::lround(t / h));
    for (long i = 0; i < steps; ++i) {
      const State a = gradient(s), b = gradient(moved(s, a, -h / 2)), c = gradient(moved(s, b, -h / 2)),
                  d = gradient(moved(s, c, -h));
      s = moved(moved(moved(moved(s, a, -h / 6), b, -h / 3), c, -h / 3), d, -h / 6);
    }
    return s;
  }

  static State moved(State s, const State& velocity, double h) {
    const auto move = [h](Vector& x, const Vector& v) {
      for (std::size_t k = 0; k < x.size(); ++k) x[k] += h * v[k];
    };
    move(s.w.values, velocity.w.values);
    move(s.u, velocity.u);
    move(s.alpha, velocity.alpha);
    s.beta += h * velocity.beta;
    return s;
  }
};

/// x(t) of x' = speed(x), x(0) = 0, in the same way.
template <class Speed>
double integrate(Speed speed, double t, double h = 1e-4) {
  double x = 0.0;
  const auto steps = static_cast<long>(std::lround(t / h));
  for (long i = 0; i < steps; ++i) {
    const double a = speed(x), b = speed(x + h / 2 * a), c = speed(x + h / 2 * b), d = speed(x + h * c);
    x += h / 6 * (a + 2 * b + 2 * c + d);
  }
  return x;
}

/// Closed forms of the Hessian in (g, w) where the output is one number (section 1.2 of the paper's facts).
struct HessianForms {
  double trace = 0.0, frobenius2 = 0.0, largest = -INFINITY;

  HessianForms(const Vector& g, const Vector& w, const Vector& target) {
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double gg = g[i] * g[i], ww = w[i] * w[i], off = 2 * g[i] * w[i] - target[i];
      trace += gg + ww;
      frobenius2 += gg * gg + ww * ww + 2 * off * off;
      largest = std::max(largest, 0.5 * (gg + ww + std::sqrt((gg - ww) * (gg - ww) + 4 * off * off)));
    }
  }
};

}  // namespace toy
