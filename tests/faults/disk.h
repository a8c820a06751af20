#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "faults/system_calls.h"
#include "support/files.h"

namespace scalevec::testing {

/// A folder on a disk, the calls that changed it, and what a power cut in their midst may leave of it. A
/// write or a length lasts if a sync of its file came later; a name (made, given, taken away) if a sync of
/// its folder did. Anything else may be there or missing, each by itself, and of a write also half of it or
/// zeros.
class Disk {
 public:
  /// Files by path below the folder; folders are there without bytes.
  using Tree = std::map<std::string, std::optional<std::string>>;

  /// What stands in `root` now is on the disk for good.
  explicit Disk(std::filesystem::path root) : root_(std::move(root)), nodes_(1) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) add(entry);
  }

  void replay(const std::vector<Call>& calls) {
    std::vector<Names> names = names_of(nodes_);
    for (const Call& call : calls) steps_.push_back(resolved(call, names));
    std::map<std::size_t, std::size_t> next;  // sync of a node
    for (std::size_t i = steps_.size(); i-- > 0;) {
      Step& step = steps_[i];
      if (step.call.kind == Call::Kind::sync) {
        next[step.node] = i;
      } else if (const auto found = next.find(of_contents(step) ? step.node : step.folder);
                 found != next.end()) {
        step.sure = found->second;
      }
    }
  }

  std::size_t calls() const { return steps_.size(); }

  /// After the first `end` calls and a power cut, where of what is not sure to last the share `kept` does.
  Tree after(std::size_t end, double kept, std::mt19937_64& random) const {
    std::vector<Node> nodes = nodes_;
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    for (std::size_t i = 0; i < end; ++i) {
      const Step& step = steps_[i];
      if (step.node == nowhere) continue;
      const bool lasts = step.sure < end || uniform(random) < kept;
      const bool torn = !lasts && kept > 0.0 && random() % 2 == 0;
      Names& folder = nodes[step.folder].names;
      std::string& bytes = nodes[step.node].bytes;
      switch (step.call.kind) {
        case Call::Kind::write:
          if (lasts) put(bytes, step.call.begin, step.call.bytes);
          if (torn && random() % 2 == 0) {
            put(bytes, step.call.begin, step.call.bytes.substr(0, step.call.bytes.size() / 2));
          } else if (torn) {
            bytes.resize(std::max<std::size_t>(bytes.size(), step.call.begin + step.call.bytes.size()), '\0');
          }
          break;
        case Call::Kind::size:
          if (lasts) bytes.resize(step.call.begin, '\0');
          break;
        case Call::Kind::rename:
        case Call::Kind::remove:
          if (!lasts) break;
          if (const auto old = folder.find(step.name); old != folder.end() && old->second == step.node)
            folder.erase(old);
          if (step.call.kind == Call::Kind::rename) folder[step.other] = step.node;
          break;
        case Call::Kind::create:
        case Call::Kind::make_folder:
          if (lasts) folder[step.name] = step.node;
          break;
        case Call::Kind::sync:
          break;
      }
    }
    Tree tree;
    collect(nodes, 0, "", tree);
    return tree;
  }

  static void write(const Tree& tree, const std::filesystem::path& to) {
    for (const auto& [path, bytes] : tree) {
      if (bytes) write_text(to / path, *bytes);
      if (!bytes) std::filesystem::create_directories(to / path);
    }
  }

 private:
  using Names = std::map<std::string, std::size_t>;
  struct Node {
    bool folder = true;
    std::string bytes;
    Names names;
  };
  struct Step {
    Call call;
    std::size_t node = nowhere, folder = 0;  // nowhere: not below the root
    std::string name, other;
    std::size_t sure = SIZE_MAX;  // once this call was made
  };
  static constexpr std::size_t nowhere = SIZE_MAX;

  static bool of_contents(const Step& step) {
    return step.call.kind == Call::Kind::write || step.call.kind == Call::Kind::size;
  }
  static void put(std::string& to, std::size_t begin, const std::string& bytes) {
    to.resize(std::max(to.size(), begin + bytes.size()), '\0');
    to.replace(begin, bytes.size(), bytes);
  }
  static std::vector<Names> names_of(const std::vector<Node>& nodes) {
    std::vector<Names> out;
    for (const Node& node : nodes) out.push_back(node.names);
    return out;
  }
  static void collect(const std::vector<Node>& nodes, std::size_t folder, const std::string& prefix,
                      Tree& tree) {
    for (const auto& [name, id] : nodes[folder].names) {
      tree[prefix + name] = nodes[id].folder ? std::nullopt : std::optional(nodes[id].bytes);
      collect(nodes, id, prefix + name + "/", tree);
    }
  }

  // The node of a path, by the names that programs see.
  std::size_t find(const std::filesystem::path& path, const std::vector<Names>& names) const {
    const std::filesystem::path below = path.lexically_normal().lexically_relative(root_);
    if (below.empty() || *below.begin() == "..") return nowhere;
    std::size_t node = 0;
    for (const auto& part : below) {
      if (part == ".") continue;
      const auto found = names[node].find(part.string());
      if (found == names[node].end()) return nowhere;
      node = found->second;
    }
    return node;
  }

  void add(const std::filesystem::directory_entry& entry) {
    const std::size_t folder = find(entry.path().parent_path(), names_of(nodes_));
    nodes_[folder].names[entry.path().filename().string()] = nodes_.size();
    const bool is_folder = entry.is_directory();
    nodes_.push_back({is_folder, is_folder ? "" : read_text(entry.path()), {}});
  }

  Step resolved(const Call& call, std::vector<Names>& names) {
    const std::filesystem::path path = call.path, other = call.other;
    Step step{.call = call, .name = path.filename().string(), .other = other.filename().string()};
    step.node = find(path, names);
    step.folder = find(path.parent_path(), names);
    if (step.folder == nowhere) {
      if (call.kind != Call::Kind::sync || step.node != 0)
        throw std::logic_error("a call elsewhere: " + call.path);
      step.folder = 0;
      return step;
    }
    const bool makes = call.kind == Call::Kind::create || call.kind == Call::Kind::make_folder;
    if (makes && step.node == nowhere) {
      step.node = names[step.folder][step.name] = nodes_.size();
      nodes_.push_back({call.kind == Call::Kind::make_folder, "", {}});
      names.emplace_back();
    } else if (makes) {
      step.node = nowhere;  // it was there
    } else if (step.node == nowhere) {
      throw std::logic_error("a call on what is not there: " + call.path);
    }
    if (call.kind == Call::Kind::rename || call.kind == Call::Kind::remove)
      names[step.folder].erase(step.name);
    if (call.kind == Call::Kind::rename) {
      if (find(other.parent_path(), names) != step.folder)
        throw std::logic_error("renamed to another folder");
      names[step.folder][step.other] = step.node;
    }
    return step;
  }

  std::filesystem::path root_;
  std::vector<Node> nodes_;  // as they were; those that the calls made are empty
  std::vector<Step> steps_;
};

}  // namespace scalevec::testing
