// What the tracer's sums over linear maps cost, in CPU time of one thread: alone, and in the pass that moves
// the maps by AdamW. 56 M parameters in SmolLM2-135M's shapes. Prints JSON.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/randn.h>

#include <scalevec/core/ops.h>
#include <scalevec/trainer/adamw.h>

#include "timing.h"

namespace {

using namespace scalevec;

struct Map {
  at::Tensor w, after, g, m, v;
};

volatile double sink = 0;  // so that nothing is computed for nobody

}  // namespace

int main() {
  at::set_num_threads(1);
  const at::NoGradGuard no_grad;
  std::vector<Map> maps;
  std::int64_t parameters = 0;
  for (int layer = 0; layer < 16; ++layer) {
    for (const auto& [rows, columns] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {576, 576}, {192, 576}, {192, 576}, {576, 576}, {1536, 576}, {1536, 576}, {576, 1536}}) {
      const at::Tensor w = at::randn({rows, columns});
      maps.push_back({w, w.add(at::randn({rows, columns}), 1e-3), at::randn({rows, columns}),
                      at::randn({rows, columns}).mul(0.1), at::randn({rows, columns}).square()});
      parameters += rows * columns;
    }
  }
  std::vector<Lines> sums(maps.size());
  std::vector<AdamwMove> plain, summed;
  std::vector<at::Tensor> w, g, m, v;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const Map& map = maps[i];
    plain.push_back({map.w, map.m, map.v, map.g});
    summed.push_back({map.w, map.m, map.v, map.g, &sums[i]});
    w.push_back(map.w), g.push_back(map.g), m.push_back(map.m), v.push_back(map.v);
  }
  constexpr double rate = 1e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1, step = 100;
  const auto eager = [&] {
    for (const Map& map : maps) {
      sink = map.w.mul(map.w).sum(0).select(0, 0).item<double>() +
             map.w.mul(map.g).sum(0).select(0, 0).item<double>() +
             map.g.mul(map.g).sum(0).select(0, 0).item<double>();
    }
  };
  const std::vector<std::function<void()>> tasks{
      // Reading alone: the sum of each of the three tensors, which a core does as fast as memory gives.
      [&] {
        for (const Map& map : maps)
          sink = (map.w.sum().item<double>() + map.after.sum().item<double>() + map.g.sum().item<double>());
      },
      [&] {
        for (const Map& map : maps) sink = column_sums(map.w, map.after, map.g)[0][0];
      },
      eager,
      [&] { adamw(plain, step, rate, beta1, beta2, eps, decay); },
      [&] { adamw(summed, step, rate, beta1, beta2, eps, decay); },
      [&] { ops::adamw(w, g, m, v, step, rate, beta1, beta2, eps, decay); },
      [&] {
        adamw(plain, step, rate, beta1, beta2, eps, decay);
        eager();
      },
      // Less than any of the sums: one norm of each matrix.
      [&] { sink = at::_foreach_norm(w)[0].item<double>() + at::_foreach_norm(g)[0].item<double>(); },
  };
  std::vector<std::vector<double>> seconds(tasks.size());
  for (int round = 0; round < 31; ++round) {
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const double start = cpu_seconds();
      tasks[i]();
      if (round > 0) seconds[i].push_back(cpu_seconds() - start);
    }
  }
  // Ratios of neighbours in a round, since machines are shared.
  const auto ratio = [&](std::size_t a, std::size_t b) {
    std::vector<double> out;
    for (std::size_t i = 0; i < seconds[a].size(); ++i) out.push_back(seconds[a][i] / seconds[b][i]);
    return median(out);
  };
  std::printf(
      R"({"parameters": %lld, "read": %.4g, "sums": %.4g, "eager": %.4g, "adamw": %.4g, "fused": %.4g, )"
      R"("torch_adamw": %.4g, "sums_to_eager": %.4g, "sums_to_read": %.4g, "fused_to_adamw": %.4g, )"
      R"("adamw_to_torch": %.4g, "fused_to_eager": %.4g, "foreach": %.4g, "sums_to_foreach": %.4g})"
      "\n",
      static_cast<long long>(parameters), median(seconds[0]), median(seconds[1]), median(seconds[2]),
      median(seconds[3]), median(seconds[4]), median(seconds[5]), ratio(1, 2), ratio(1, 0), ratio(4, 3),
      ratio(3, 5), ratio(4, 6), median(seconds[7]), ratio(1, 7));
}
