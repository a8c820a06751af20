// write_logits MODEL IDS OUT [--dtype float32|bfloat16|float64] [--cached N] [--from N] [--threads N] [--time
// N]
//
// Logits of one sequence as raw float32 (float64 under that dtype), row by row. IDS: raw int64. --cached N:
// reads the first N ids at once into a key-value cache, the others one by one. --from N: rows before N are
// not written. --time N: prints the CPU seconds of N further forwards.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <scalevec/core/model/transformer.h>

namespace {

std::vector<std::int64_t> read_ids(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::int64_t> ids;
  for (std::int64_t id = 0; file.read(reinterpret_cast<char*>(&id), sizeof id);) ids.push_back(id);
  return ids;
}

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

int run(const std::vector<std::string>& args) {
  scalevec::Transformer::Options options;
  std::int64_t cached = -1, from = 0, repeats = 0;
  for (std::size_t i = 4; i + 1 < args.size(); i += 2) {
    const std::string &key = args[i], &value = args[i + 1];
    if (key == "--dtype")
      options.compute = value == "bfloat16" ? at::kBFloat16 : value == "float64" ? at::kDouble : at::kFloat;
    if (key == "--cached") cached = std::stoll(value);
    if (key == "--from") from = std::stoll(value);
    if (key == "--threads") at::set_num_threads(std::stoi(value));
    if (key == "--time") repeats = std::stoll(value);
  }
  const at::NoGradGuard no_grad;
  const auto model = scalevec::Transformer::load(scalevec::Checkpoint::open(args[1]), options);
  const at::Tensor ids = at::tensor(read_ids(args[2]), at::kLong);
  at::Tensor hidden;
  if (cached < 0) {
    hidden = model->hidden(ids);
  } else {
    scalevec::KvCache cache;
    std::vector<at::Tensor> parts;
    if (cached > 0) parts.push_back(model->hidden(ids.narrow(0, 0, cached), &cache));
    for (std::int64_t i = cached; i < ids.size(0); ++i)
      parts.push_back(model->hidden(ids.narrow(0, i, 1), &cache));
    hidden = at::cat(parts, 1);
  }
  std::ofstream out(args[3], std::ios::binary);
  for (std::int64_t i = from; i < ids.size(0); i += 64) {
    const at::Tensor rows =
        model->head(hidden.narrow(1, i, std::min<std::int64_t>(64, ids.size(0) - i))).contiguous();
    out.write(static_cast<const char*>(rows.const_data_ptr()), static_cast<std::streamsize>(rows.nbytes()));
  }
  std::vector<double> seconds;
  for (std::int64_t i = 0; i < repeats; ++i) {
    const double begin = cpu_seconds();
    model->logits(ids);
    seconds.push_back(cpu_seconds() - begin);
    std::printf("%.4f\n", seconds.back());
  }
  return out ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
