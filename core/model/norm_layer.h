#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model_spec.h>
#include <scalevec/core/observer.h>

namespace scalevec {

/// Who watches one forward.
class Watchers {
 public:
  Watchers(const std::vector<Site>& all_sites, const ObserverList& all_observers, bool in_silence = false)
      : sites(all_sites), observers(all_observers), silent(in_silence) {}

  const std::vector<Site>& sites;
  const ObserverList& observers;
  const bool silent;  // vectors are lent, nothing is shown: a cache is being filled again

  /// The parts of a site that observers want to see.
  unsigned wanted(std::size_t site) const {
    return observers.empty() || silent ? 0u : observers.wanted(site);
  }
  void show(const NormEvent& event) const {
    kept_ = true;
    observers.show(event);
  }
  /// Whether somebody may hold tensors of this forward, so that none may be written in place.
  bool kept() const { return kept_; }

 private:
  mutable bool kept_ = false;
};

/// One norm of the model and its vector: the only place where a norm is computed, and the one seam where it
/// is watched.
class NormLayer {
 public:
  /// site: index into Watchers::sites. stored (alpha), bias: (spec.width,), beta: (1,), shared, or undefined.
  NormLayer(std::size_t site, const NormSpec& spec, at::Tensor stored, at::Tensor bias, at::Tensor beta);

  /// x: (..., n), n a multiple of the spec's group; n = spec.width where there is a vector. Returns x's shape
  /// and dtype.
  at::Tensor operator()(const at::Tensor& x, const Watchers& watch) const;

  std::int64_t width() const { return spec_.width; }

 private:
  at::Tensor vector(const at::Tensor& x, const Watchers& watch) const;

  std::size_t site_;
  NormSpec spec_;
  at::Tensor stored_, bias_, beta_;

  // The converted vector, good while what is stored is at `version_`.
  mutable at::Tensor converted_;
  mutable std::uint64_t version_ = 0;
};

/// The norm before several linear maps: one vector for all, or branches with vectors of their own (HG).
struct InputNorm {
  std::optional<NormLayer> shared;  // what branches without their own read
  std::vector<std::optional<NormLayer>> branches;

  /// What each branch reads; x itself where there is no norm.
  std::vector<at::Tensor> operator()(const at::Tensor& x, const Watchers& watch) const;
};

}  // namespace scalevec
