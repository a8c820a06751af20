#include <cstdio>

#include <scalevec/core/checkpoint/checkpoint.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto checkpoint = scalevec::Checkpoint::open(argv[1]);
  for (const scalevec::Site& site : checkpoint.sites()) std::puts(site.address.str().c_str());
}
