// write_results MODEL OUT: edits a model, measures it, screens some entries, and records all of it in a
// results file.
#include <cstdio>
#include <exception>

#include <scalevec/analysis/saliency.h>
#include <scalevec/edits/measure.h>
#include <scalevec/edits/record.h>
#include <scalevec/edits/sweep.h>
#include <scalevec/edits/transaction.h>

namespace {

using namespace scalevec;

void write(const char* from, const char* to) {
  const Checkpoint checkpoint = Checkpoint::open(from);
  const auto model = Transformer::load(checkpoint, {});
  Journal journal(model->scales(), {.family = checkpoint.family(), .file = "model"});

  // Any ids will do: 1,500 of a walk through the vocabulary, in two documents.
  Documents text(2);
  std::int64_t id = 1;
  for (int i = 0; i < 1500; ++i) {
    id = (id * 31 + 7 + i % 5) % model->spec().vocabulary;
    text[i < 900 ? 0 : 1].push_back(id);
  }
  const Saliency salient = saliency(*model, text, {.context = 64, .tokens = 128});
  std::vector<Trial> trials;
  for (const Entry& entry : top_entries(salient.ablation(), 5))
    trials.push_back({entry.vector, entry.channel, 0.0});
  const std::vector<Change> changes =
      sweep(*model, text, trials, {.windows = {.context = 64, .tokens = 256}});

  Transaction edit(journal);
  edit.rescale("role:input", 0.9);
  edit.ablate("final_norm@3,5:8");
  const Measurement made =
      measure(*model, text, {.windows = {.context = 64}, .seed = 9, .per_token = true, .journal = &journal});

  ResultsFile file(to, results_header(made, "write_results"), Replace::files);
  record_model(file, checkpoint, model->scales());
  record_sites(file, model->scales());
  record_saliency(file, salient);
  record_edit(file, journal.edit());
  record_measurement(file, made);
  record_sweep(file, model->scales(), trials, changes, std::vector<std::string>(trials.size(), "screened"));
  file.finish();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fputs("usage: write_results MODEL OUT\n", stderr);
    return 2;
  }
  try {
    write(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
