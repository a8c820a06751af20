// inspect MODEL [SELECTOR]: every scale vector of a model, without loading it (and without LibTorch).
#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>

#include <fmt/core.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/selector.h>

int main(int argc, char** argv) try {
  if (argc < 2 || argc > 3) {
    fmt::print(stderr, "usage: {} MODEL [SELECTOR]\n", argv[0]);
    return 2;
  }
  const auto checkpoint = scalevec::Checkpoint::open(argv[1]);
  const auto selector = scalevec::Selector::parse(argc > 2 ? argv[2] : "**");

  fmt::print("{:<34} {:<8} {:>6} {:>9} {:>9} {:>9}  {}\n", "address", "role", "width", "mean", "min", "max",
             "native");
  for (const auto& chosen : selector.select(checkpoint.sites())) {
    const scalevec::Site& site = checkpoint.sites()[chosen.site];
    const std::vector<double> g = checkpoint.effective(site);
    const auto [low, high] = std::minmax_element(g.begin(), g.end());
    const double mean = std::accumulate(g.begin(), g.end(), 0.0) / static_cast<double>(g.size());
    fmt::print("{:<34} {:<8} {:>6} {:>9.4f} {:>9.4f} {:>9.4f}  {}\n", site.address.str(),
               role_name(site.role), site.width, mean, *low, *high, site.native);
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
