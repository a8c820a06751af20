// Private to Experiment.
#pragma once

#include <string>

#include <scalevec/trainer/experiment.h>

namespace scalevec {

/// Everything that can be told without the corpus: E_VALUE for a value out of range or that does not fit the
/// others, E_CONFIG for a model that cannot be; with the field, and `file` as its file.
void check(const Experiment& experiment, const std::string& file);

}  // namespace scalevec
