// One vector of our own, edited in a transaction that ends; and a norm, whose kernels may be CUDA's.
#include <cmath>
#include <cstdio>

#include <ATen/ops/full.h>

#include <scalevec/core/norm.h>
#include <scalevec/core/scale_map.h>
#include <scalevec/edits/transaction.h>

int main() {
  scalevec::Site site;
  site.address = scalevec::Address::parse("layers.0.attn.input_norm");
  site.native = "norm.weight";
  site.width = 4;
  site.group = 4;
  const at::Tensor stored = at::full({4}, 1.5F);
  scalevec::ScaleMap scales({scalevec::ScaleVector(site, stored)});
  const auto before = scales[0].bytes();
  {
    scalevec::Journal journal(scales);
    scalevec::Transaction transaction(journal);
    transaction.rescale("layers.*.attn.input_norm@1,2", 0.5);
    if (scales[0].bytes() == before) return 1;
    std::printf("edited: %g\n", scales[0].effective()[1].item<double>());
  }
  if (scales[0].bytes() != before) return 1;
  // Of four equal entries each is their rms: the norm gives the vector back.
  const at::Tensor normalized = scalevec::rms_norm(at::full({2, 4}, -3.0F), stored, 0.0);
  if (std::abs(normalized[1][3].item<double>() + 1.5) > 1e-6) return 1;
  std::puts("reverted bit for bit");
}
