/// at::parallel_for, on torch's own threads.
#pragma once

#include <ATen/Parallel.h>

#ifndef INTRA_OP_PARALLEL
#error "without -fopenmp, ATen's parallel_for is a loop on one thread"
#endif
