#pragma once

#include <cstddef>

#include <scalevec/edits/edit.h>
#include <scalevec/edits/edit_fields.h>

namespace scalevec {

/// An entry of an edit file's "vectors", whose steps name some of `operations` operations; E_BUNDLE names the
/// field that no vector has.
EditedVector read_vector(const EditFields& fields, std::size_t operations);

/// What can be known without the model: old bytes and operations must lead to the digests and touch what is
/// listed. E_BUNDLE names the field that does not.
void check_vector(const Edit& edit, const EditedVector& vector, const EditFields& fields);

}  // namespace scalevec
