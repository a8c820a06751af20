// train EXPERIMENT.toml RUN: trains a model in a folder, or goes on with one that was stopped; Ctrl-C stops
// at a step.
#include <cmath>
#include <csignal>
#include <exception>

#include <fmt/core.h>

#include <scalevec/trainer/run.h>

namespace {
volatile std::sig_atomic_t stop = 0;
}

int main(int argc, char** argv) try {
  if (argc != 3) {
    fmt::print(stderr, "usage: {} EXPERIMENT.toml RUN\n", argv[0]);
    return 2;
  }
  std::signal(SIGINT, [](int) { stop = 1; });
  scalevec::Training training(scalevec::Experiment::read(argv[1]));
  const scalevec::RunResult result = scalevec::run(
      training, {.folder = argv[2],
                 .resume = scalevec::last_checkpoint(argv[2]).has_value(),
                 .command = fmt::format("{} {} {}", argv[0], argv[1], argv[2]),
                 .on_step = [](const scalevec::RunEvent& event) {
                   if (!std::isnan(event.validation_loss)) {
                     fmt::print("step {:>6}: loss {:.4f}, validation {:.4f} nats, {:.0f} tokens/s\n",
                                event.step.step, event.step.loss, event.validation_loss,
                                event.tokens_per_second);
                   }
                   return stop != 0;
                 }});
  for (const auto& fault : result.gauge_faults) {
    fmt::print(stderr, "the identity {} fails at {} in step {}\n", fault.identity, fault.address, fault.step);
  }
  fmt::print("{} after step {}\n", result.finished ? "finished" : "stopped", result.steps);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
