// Mutates the seeds for a number of iterations: the same ones in every run, with any compiler.
//   <format>_fuzz [ITERATIONS [FIRST]]     FILE...  are read once each instead, as libFuzzer does
// An input that ends the process is left in the current folder.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz.h"

extern "C" {
// Sanitizers must abort, so that the input is kept.
const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=1:handle_abort=0"; }
const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }
}

namespace {

std::string current;
unsigned long iteration = 0;
char crash_name[64];

void keep_input(int signal) {
  const int file = ::open(crash_name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file >= 0 && ::write(file, current.data(), current.size()) >= 0) ::close(file);
  std::fprintf(stderr, "fuzz: signal %d at iteration %lu; the input is in %s\n", signal, iteration,
               crash_name);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

bool is_number(const char* text) {
  char* end = nullptr;
  std::strtoul(text, &end, 10);
  return end != text && *end == '\0';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !is_number(argv[1])) {
    for (int i = 1; i < argc; ++i) {
      std::ifstream in(argv[i], std::ios::binary);
      run({std::istreambuf_iterator<char>(in), {}});
    }
    return 0;
  }
  const unsigned long count = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20'000;
  const unsigned long first = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
  std::snprintf(crash_name, sizeof crash_name, "fuzz-crash-%ld.bin", static_cast<long>(::getpid()));
  for (const int signal : {SIGABRT, SIGSEGV, SIGALRM}) std::signal(signal, keep_input);
  const auto seeds = scalevec::fuzz::seeds();
  for (const std::string& seed : seeds) run(current = seed);
  const auto begin = std::chrono::steady_clock::now();
  for (iteration = first; iteration < first + count; ++iteration) {
    if (iteration % 1024 == 0) ::alarm(60);  // a hang ends with the input kept, too
    scalevec::fuzz::Random random(static_cast<scalevec::fuzz::Random::result_type>(iteration));
    current = seeds[random() % seeds.size()];
    for (unsigned rounds = random() % 3; rounds <= 2; ++rounds) scalevec::fuzz::mutate(current, random);
    run(current);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::printf("%lu inputs in %.1f s\n", count, seconds.count());
  return 0;
}
