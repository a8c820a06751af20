#include <scalevec/analysis/text_loss.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include <ATen/core/grad_mode.h>

#include <scalevec/core/kernels/logits.h>
#include <scalevec/core/parallel.h>

namespace scalevec {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t{64} << 20;

// The rows' gradients take the place of the logits; returns the sum of the losses.
template <class T>
double on_cpu(at::Tensor& logits, const at::Tensor& targets, double scale) {
  const std::int64_t vocabulary = logits.size(1);
  T* const rows = logits.mutable_data_ptr<T>();
  const std::int64_t* const wanted = targets.const_data_ptr<std::int64_t>();
  std::vector<double> losses(static_cast<std::size_t>(logits.size(0)));
  at::parallel_for(0, logits.size(0), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      losses[static_cast<std::size_t>(i)] =
          kernels::loss_gradient(rows + i * vocabulary, vocabulary, wanted[i], scale);
    }
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

double on_device(at::Tensor& logits, const at::Tensor& targets, double scale) {
  const at::Tensor column = targets.to(logits.device()).unsqueeze(1);
  logits = logits.log_softmax(1);
  const double loss = -logits.gather(1, column).to(at::kDouble).sum().item<double>();
  logits.exp_().scatter_add_(1, column, column.to(logits.scalar_type()).fill_(-1)).mul_(scale);
  return loss;
}

double loss_gradients(at::Tensor& logits, const at::Tensor& targets, double scale) {
  if (!logits.device().is_cpu()) return on_device(logits, targets, scale);
  return logits.scalar_type() == at::kDouble ? on_cpu<double>(logits, targets, scale)
                                             : on_cpu<float>(logits, targets, scale);
}

// Calls `see` with the first row and the number of rows of each chunk.
void by_chunks(std::int64_t rows, std::int64_t vocabulary,
               const std::function<void(std::int64_t, std::int64_t)>& see) {
  const std::int64_t step = std::max<std::int64_t>(1, chunk_bytes / (8 * vocabulary));
  for (std::int64_t begin = 0; begin < rows; begin += step) see(begin, std::min(step, rows - begin));
}

}  // namespace

double backward_loss(Transformer& model, const at::Tensor& ids, const at::Tensor& targets,
                     const std::vector<at::Tensor>& leaves, double scale, Balance* balance) {
  Routing routing;
  const at::Tensor hidden = (balance ? model.hidden(ids, routing) : model.hidden(ids)).flatten(0, 1);
  const at::Tensor wanted = targets.flatten();
  // The graph is cut here, so that the logits and their gradient exist for a few rows at a time only.
  const at::Tensor cut = hidden.detach().requires_grad_();
  std::vector<at::Tensor> inputs = leaves;
  inputs.push_back(cut);
  double loss = 0.0;
  by_chunks(cut.size(0), model.spec().vocabulary, [&](std::int64_t begin, std::int64_t count) {
    const at::Tensor logits = model.head(cut.narrow(0, begin, count));
    at::Tensor gradient = logits.detach().clone();
    loss += loss_gradients(gradient, wanted.narrow(0, begin, count).contiguous(), scale);
    logits.backward(gradient, /*retain_graph=*/false, /*create_graph=*/false, inputs);
  });
  if (!hidden.requires_grad()) return loss;  // leaves of the head alone
  if (routing.empty()) {
    hidden.backward(cut.grad(), /*retain_graph=*/false, /*create_graph=*/false, leaves);
    return loss;
  }
  at::Tensor uneven;
  for (const auto& [layer, use] : routing) uneven = uneven.defined() ? uneven.add(use.balance) : use.balance;
  uneven = uneven.div(static_cast<double>(routing.size()));
  balance->value = uneven.item<double>();
  // One pass for both, since they share the graph.
  const at::Tensor joint = hidden.to(uneven.scalar_type()).mul(cut.grad()).sum().add(uneven, balance->weight);
  joint.backward({}, /*retain_graph=*/false, /*create_graph=*/false, leaves);
  return loss;
}

double sum_losses(Transformer& model, const at::Tensor& ids, const at::Tensor& targets) {
  const at::NoGradGuard no_grad;
  const at::Tensor hidden = model.hidden(ids).flatten(0, 1), wanted = targets.flatten();
  double loss = 0.0;
  by_chunks(hidden.size(0), model.spec().vocabulary, [&](std::int64_t begin, std::int64_t count) {
    at::Tensor logits = model.head(hidden.narrow(0, begin, count));
    loss += loss_gradients(logits, wanted.narrow(0, begin, count).contiguous(), 1.0);
  });
  return loss;
}

}  // namespace scalevec
