#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/dtype.h>
#include <scalevec/edits/verb.h>

namespace scalevec {

/// A verb, where, and with what; then what it did when it was made.
struct Operation {
  std::string verb = {};
  std::string selector = {};
  Arguments arguments = {};
  Allow allow = {};

  std::int64_t selected = 0, changed = 0, lost = 0;  // channels over all vectors
  std::map<std::string, double> gathered = {};       // Verb::gather by address, where the verb has it

  friend bool operator==(const Operation&, const Operation&) = default;
};

/// Requests; `Transaction` and `Draft` run them.
Operation rescale(std::string selector, double factor, Allow allow = {});
Operation set(std::string selector, double value, Allow allow = {});
/// One effective value for each selected channel, the same for every vector that the selector names.
Operation set(std::string selector, std::vector<double> values, Allow allow = {});
/// to: "zero", "one" or "mean".
Operation ablate(std::string selector, std::string to = "zero", Allow allow = {});

/// One operation's part in one vector: its number, and the channels touched.
struct Step {
  std::size_t operation = 0;
  std::vector<std::int64_t> channels;
  friend bool operator==(const Step&, const Step&) = default;
};

/// What an edit does to one vector, with all that takes it back.
struct EditedVector {
  std::string address = {}, native = {};
  DType dtype = DType::f32;
  double offset = 0.0;
  std::int64_t width = 0;
  std::string base = {}, after = {};        // vector_digest before the first operation and after the last
  std::vector<std::int64_t> channels = {};  // whose stored bits differ; ascending, never empty
  std::vector<std::byte> old = {};          // their stored bytes in the base, little-endian
  std::vector<Step> steps = {};             // restricted to `channels`, in order

  friend bool operator==(const EditedVector&, const EditedVector&) = default;
};

/// Where an edit was made.
struct EditSource {
  std::string family;  // "llama"
  std::string file;    // name without folders
};

/// What was done to a model's scale vectors, and how to undo it: a value. It fits the container (GGUF or
/// safetensors) that it was made on; `rebase` makes it anew for another.
struct Edit {
  EditSource source = {};
  std::string tool = {};  // "scalevec 0.1.0"
  std::string note = {};
  std::vector<Operation> operations = {};
  /// By address, numbers in order of size; those whose bits did not change are absent.
  std::vector<EditedVector> vectors = {};

  const EditedVector* find(std::string_view address) const;
};

/// Stored bytes of `vector.channels` after the edit: from the operations, without the model.
std::vector<std::byte> new_bytes(const Edit& edit, const EditedVector& vector);

/// First `first`, then `second`. E_BUNDLE, with address and both digests, where `second` does not begin as
/// `first` ends.
Edit compose(const Edit& first, const Edit& second);

/// The edit that takes `edit` back: sets the old bytes.
Edit invert(const Edit& edit);

/// Order of Edit::vectors: dotted parts compared as text, numbers in them as numbers.
bool address_before(std::string_view a, std::string_view b);

/// "scalevec <version>"
std::string tool_name();

}  // namespace scalevec
