#include "support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::mt19937_64 random(0);
  const scalevec::testing::TinyOptions options;
  scalevec::testing::write_folder(argv[1], scalevec::testing::tiny_llama(random, options), options, 1);
}
