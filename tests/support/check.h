// Included last: c10's logging, which some of ATen's headers bring along, has a CHECK of its own that ends
// the program.
#include <doctest/doctest.h>

#undef CHECK
#define CHECK DOCTEST_CHECK
