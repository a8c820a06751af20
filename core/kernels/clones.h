#pragma once

/// One function, compiled for several instruction sets, chosen when the program starts: the library must run
/// on any x86-64. The choice changes no bit of a result: lanes are fixed and products are not contracted
/// (core/CMakeLists.txt). Sanitizers run before the loader can choose, so they get the plain version.
#if defined(__x86_64__) && defined(__ELF__) && !defined(__SANITIZE_ADDRESS__) && !defined(__CUDACC__)
#define SCALEVEC_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SCALEVEC_CLONES
#endif
