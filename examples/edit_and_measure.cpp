// edit_and_measure MODEL SELECTOR FACTOR IDS...: rescale some scale vectors, measure what that does on token
// ids, and leave the model as it was.
#include <cstdlib>
#include <exception>

#include <fmt/core.h>

#include <scalevec/core/model/transformer.h>
#include <scalevec/edits/measure.h>
#include <scalevec/edits/transaction.h>

int main(int argc, char** argv) try {
  if (argc < 6) {
    fmt::print(stderr, "usage: {} MODEL SELECTOR FACTOR ID ID [ID...]\n", argv[0]);
    return 2;
  }
  const auto checkpoint = scalevec::Checkpoint::open(argv[1]);
  const auto model = scalevec::Transformer::load(checkpoint, {});
  std::vector<std::int64_t> ids;
  for (int i = 4; i < argc; ++i) ids.push_back(std::atoll(argv[i]));

  scalevec::Journal journal(model->scales());
  scalevec::Transaction transaction(journal);
  transaction.rescale(argv[2], std::atof(argv[3]));
  const scalevec::Change change = scalevec::measure(*model, {ids}).change;
  fmt::print("loss {:.4f} -> {:.4f}, KL {:.4g}, flips {:.1f} %\n", change.loss_base.value,
             change.loss_edited.value, change.kl.value, 100 * change.flips.value);
  return 0;  // the transaction ends here: every byte is as it was
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
