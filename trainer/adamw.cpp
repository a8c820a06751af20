#include <scalevec/trainer/adamw.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include <scalevec/core/parallel.h>

namespace scalevec {

void adamw(const std::vector<AdamwMove>& moves, double step, double rate, double beta1, double beta2,
           double eps, double weight_decay) {
  struct Task {
    kernels::AdamwCall call;
    std::int64_t begin, end;
    ColumnSums* sums;
  };
  std::vector<Task> tasks;
  std::vector<std::optional<ColumnSums>> sums(moves.size());
  for (std::size_t i = 0; i < moves.size(); ++i) {
    const AdamwMove& move = moves[i];
    const std::int64_t columns = move.w.dim() > 1 ? move.w.size(-1) : move.w.numel();
    const std::int64_t rows = columns > 0 ? move.w.numel() / columns : 0;
    if (move.sums) sums[i].emplace(rows, columns);
    if (rows == 0) continue;
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
    for (std::int64_t begin = 0; begin < rows; begin += ColumnSums::rows_of_a_task)
      tasks.push_back(
          {call, begin, std::min(rows, begin + ColumnSums::rows_of_a_task), sums[i] ? &*sums[i] : nullptr});
  }
  one_by_one(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    if (task.sums) {
      kernels::adamw_column_sums(task.call, task.begin, task.end,
                                 task.sums->place(task.begin / ColumnSums::rows_of_a_task));
    } else {
      kernels::adamw(task.call, task.begin, task.end);
    }
  });
  for (std::size_t i = 0; i < moves.size(); ++i) {
    if (sums[i]) *moves[i].sums = std::move(*sums[i]).total();
    moves[i].w.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace scalevec
