// What watching costs one norm, in CPU time: nobody there, an observer that wants nothing, taps. Prints JSON.
#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>

#include <scalevec/core/model/norm_layer.h>
#include <scalevec/core/norm.h>
#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/tap.h>

#include "timing.h"

namespace {

using namespace scalevec;

// A model that is one norm.
class OneNorm final : public SiteProvider {
 public:
  explicit OneNorm(std::int64_t width) : vector(at::randn({width}, at::kFloat)) {
    Site site;
    site.address = Address::parse("final_norm");
    site.width = site.group = width;
    site.eps = 1e-5;
    sites_ = {site};
    scales_ = std::make_unique<ScaleMap>(std::vector<ScaleVector>{{site, vector}});
    NormSpec spec;
    spec.width = spec.group = width;
    layer_ = std::make_unique<NormLayer>(0, spec, vector, at::Tensor(), at::Tensor());
  }
  const std::vector<Site>& sites() const override { return sites_; }
  ScaleMap& scales() override { return *scales_; }
  ObserverList& observers() override { return observers_; }
  at::Tensor operator()(const at::Tensor& x) const { return (*layer_)(x, Watchers(sites_, observers_)); }

  at::Tensor vector;

 private:
  std::vector<Site> sites_;
  std::unique_ptr<ScaleMap> scales_;
  std::unique_ptr<NormLayer> layer_;
  ObserverList observers_;
};

double seconds(const std::function<void()>& run, int repeats) {
  const double start = cpu_seconds();
  for (int i = 0; i < repeats; ++i) run();
  return (cpu_seconds() - start) / repeats;
}

struct Variant {
  const char* name;
  std::function<void()> run;
  std::vector<double> times = {}, ratios = {};
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
  const at::NoGradGuard no_grad;
  at::set_num_threads(1);
  // Freed blocks stay with us: page faults of the allocator cost more than what is measured here.
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_MMAP_THRESHOLD, 1 << 25);
  const Selector all = Selector::parse("**");
  struct Shape {
    std::int64_t tokens;
    int repeats;
  };
  std::printf("[");
  const char* separator = "\n";
  for (const auto& [tokens, repeats] : {Shape{1, 20000}, Shape{512, 200}, Shape{65536, 1}}) {
    const at::Tensor x = at::randn({1, tokens, 576}, at::kFloat);
    OneNorm quiet(576), idle(576), same_bytes(576), tapped(576), captured(576);
    const auto ignore = [](const NormEvent&) {};
    const Tap nothing(idle, all, taps::input, ignore);
    const Tap cheap(same_bytes, all, taps::input | taps::rms | taps::scaled | taps::vector, ignore);
    const Tap full(tapped, all, taps::forward, ignore);
    Capture capture(captured, all, taps::forward);
    std::vector<Variant> variants = {{"no list", [&] { rms_norm(x, quiet.vector, 1e-5); }},
                                     {"empty list", [&] { quiet(x); }},
                                     {"tap of the input", [&] { idle(x); }},
                                     {"taps but normalized", [&] { same_bytes(x); }},
                                     {"all taps", [&] { tapped(x); }},
                                     {"capture of all", [&] {
                                        captured(x);
                                        capture.clear();
                                      }}};
    for (int round = -1; round < rounds; ++round) {
      double base = 0;
      for (Variant& variant : variants) {
        const double time = seconds(variant.run, repeats);
        if (&variant == variants.data()) base = time;
        if (round < 0) continue;  // warm up
        variant.times.push_back(time);
        variant.ratios.push_back(time / base);
      }
    }
    for (const Variant& variant : variants) {
      std::printf("%s  {\"tokens\": %lld, \"variant\": \"%s\", \"seconds\": %.4g, \"ratio\": %.4f}",
                  separator, static_cast<long long>(tokens), variant.name, median(variant.times),
                  median(variant.ratios));
      separator = ",\n";
    }
  }
  std::printf("\n]\n");
  return 0;
}
