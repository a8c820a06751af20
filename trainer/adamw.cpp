#include <scalevec/trainer/adamw.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <scalevec/core/parallel.h>

namespace scalevec {

void adamw(const std::vector<AdamwMove>& moves, double step, double rate, double beta1, double beta2,
           double eps, double weight_decay) {
  struct Task {
    kernels::AdamwCall call;
    std::int64_t begin, end;
    double* out;
  };
  std::vector<Task> tasks;
  // Of each move that is summed, what its tasks found, one after another.
  std::vector<std::vector<double>> parts(moves.size());
  for (std::size_t i = 0; i < moves.size(); ++i) {
    const AdamwMove& move = moves[i];
    if (move.w.numel() == 0) continue;
    const std::int64_t columns = move.w.dim() > 1 ? move.w.size(-1) : move.w.numel();
    const std::int64_t rows = move.w.numel() / columns;
    const kernels::AdamwCall call{.w = move.w.mutable_data_ptr<float>(),
                                  .m = move.m.mutable_data_ptr<float>(),
                                  .v = move.v.mutable_data_ptr<float>(),
                                  .g = move.g.const_data_ptr<float>(),
                                  .columns = columns,
                                  .keep = static_cast<float>(1.0 - rate * weight_decay),
                                  .rest1 = static_cast<float>(1.0 - beta1),
                                  .beta2 = static_cast<float>(beta2),
                                  .rest2 = static_cast<float>(1.0 - beta2),
                                  .rate = static_cast<float>(rate / (1.0 - std::pow(beta1, step))),
                                  .root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step))),
                                  .eps = static_cast<float>(eps)};
    const auto size = static_cast<std::size_t>(kernels::LineSums::count * columns);
    if (move.sums)
      parts[i].resize(size * static_cast<std::size_t>((rows + rows_of_a_task - 1) / rows_of_a_task));
    for (std::int64_t begin = 0; begin < rows; begin += rows_of_a_task) {
      double* const out =
          move.sums ? parts[i].data() + static_cast<std::size_t>(begin / rows_of_a_task) * size : nullptr;
      tasks.push_back({call, begin, std::min(rows, begin + rows_of_a_task), out});
    }
  }
  at::parallel_for(0, static_cast<std::int64_t>(tasks.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Task& task = tasks[static_cast<std::size_t>(i)];
      if (task.out) {
        kernels::adamw_column_sums(task.call, task.begin, task.end, task.out);
      } else {
        kernels::adamw(task.call, task.begin, task.end);
      }
    }
  });
  for (std::size_t i = 0; i < moves.size(); ++i) {
    if (moves[i].sums) *moves[i].sums = added(std::move(parts[i]), moves[i].w.size(-1));
    moves[i].w.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace scalevec
