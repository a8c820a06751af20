#include <scalevec/edits/patched_copy.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/edits/copy_file.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr int deepest = 16;
constexpr std::size_t no_tensors = static_cast<std::size_t>(-1);

// One file of the copy: where from, what it is called there, and which of the checkpoint's files it is.
struct Item {
  fs::path source, name;
  fs::path below = {};  // where `source` is in the model's folder, links resolved; empty: it may be anywhere
  std::size_t file = no_tensors;
  std::uint64_t size = 0;
};

std::string reason(int error) { return std::generic_category().message(error); }

bool is_link(const fs::path& path) {
  std::error_code error;
  return fs::is_symlink(fs::symlink_status(path, error));
}

bool is_inside(const fs::path& path, const fs::path& folder) {
  const auto [rest, unused] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return rest == folder.end() || (std::next(rest) == folder.end() && rest->empty());
}

fs::path resolved(const fs::path& path) {
  std::error_code error;
  const fs::path found = fs::weakly_canonical(fs::absolute(path), error);
  return error ? fs::absolute(path).lexically_normal() : found;
}

class Copier {
 public:
  Copier(const Checkpoint& checkpoint, const std::vector<Patch>& patches, const Progress& progress)
      : checkpoint_(checkpoint), patches_(patches), progress_(progress) {
    report_.vectors = patches.size();
  }

  ExportReport run(const fs::path& destination) {
    std::error_code ignored;
    const bool folder = fs::is_directory(checkpoint_.path(), ignored);
    home_ = resolved(folder ? checkpoint_.path() : fs::absolute(checkpoint_.path()).parent_path());
    require_apart(destination, folder);
    // A reader would take it for what its name says.
    const std::string suffix = destination.extension().string();
    if ((suffix == ".gguf" || suffix == ".safetensors") &&
        (folder || suffix != checkpoint_.path().extension())) {
      const std::string_view made = folder                                       ? "a folder"
                                    : checkpoint_.container() == Container::gguf ? "a GGUF file"
                                                                                 : "a safetensors file";
      fail(ErrorCode::path,
           fmt::format("copying a model: {} becomes {}, so '{}' would be misread",
                       checkpoint_.path().string(), made, destination.filename().string()),
           {.file = destination.string(), .expected = std::string(made), .found = suffix});
    }
    const bool into_folder = !destination.has_filename() || fs::is_directory(destination, ignored);
    if (folder || into_folder) {
      // Before anything is read: a destination that cannot be is said at once.
      AtomicFolder made(destination);
      if (folder) {
        list_folder(checkpoint_.path(), {}, 0);
        std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) { return a.name < b.name; });
      } else {
        list_file();
      }
      measure();
      for (const Item& item : items_) copy_into(made.path(), item);
      made.commit();
    } else {
      AtomicFile made(destination, Replace::no);
      list_file();
      items_.resize(1);
      measure();
      copy(items_[0], made.descriptor(), made.path());
      made.commit();
    }
    return std::move(report_);
  }

 private:
  void require_apart(const fs::path& destination, bool folder) const {
    const auto refuse = [&](std::string_view what) {
      fail(ErrorCode::path,
           fmt::format("the destination '{}' is {}; the base is never written to. Choose another place.",
                       printable(destination.string()), what),
           {.file = destination.string(),
            .expected = "a place outside of the source",
            .found = std::string(what)});
    };
    if (destination.empty()) refuse("an empty path");
    std::error_code error;
    for (const fs::path& file : checkpoint_.files()) {
      if (fs::exists(destination, error) && fs::equivalent(destination, file, error)) {
        refuse("a file of the source itself, or a link to it");
      }
    }
    if (fs::exists(destination, error) && fs::equivalent(destination, checkpoint_.path(), error))
      refuse("the source itself");
    if (folder && is_inside(resolved(destination), resolved(checkpoint_.path())))
      refuse("inside the source folder");
  }

  std::size_t file_of(const fs::path& path) const {
    std::error_code error;
    for (std::size_t i = 0; i < checkpoint_.files().size(); ++i) {
      if (fs::equivalent(path, checkpoint_.files()[i], error)) return i;
    }
    return no_tensors;
  }

  void list_file() {
    const fs::path& source = checkpoint_.path();
    items_.push_back({source, source.filename(), {}, 0, 0});
    if (checkpoint_.container() != Container::safetensors) return;
    const fs::path config = source.parent_path() / "config.json";
    items_.push_back({config, "config.json", below(config, "config.json"), no_tensors, 0});
  }

  // Shards that are links out of the folder were opened because the user allows such links (a hub cache).
  bool links_may_leave() const {
    return std::any_of(checkpoint_.files().begin(), checkpoint_.files().end(), [&](const fs::path& file) {
      return is_link(file) && !is_inside(resolved(file), home_);
    });
  }

  [[noreturn]] static void refuse(const fs::path& path, std::string_view what) {
    fail(ErrorCode::path, fmt::format("cannot copy '{}': {}", printable(path.string()), what),
         {.file = path.string(), .found = std::string(what)});
  }

  // Item::below of a file or link that is called `name` in the folder.
  fs::path below(const fs::path& path, const fs::path& name) const {
    if (!is_link(path)) return name;
    const fs::path target = resolved(path);
    std::error_code ignored;
    if (!fs::is_regular_file(target, ignored)) refuse(path, "a link to something that is no file");
    if (is_inside(target, home_)) return target.lexically_relative(home_);
    if (links_may_leave()) return {};
    refuse(path, "a link that leaves the folder; allow links when opening it, if that is meant");
  }

  void list_folder(const fs::path& folder, const fs::path& prefix, int depth) {
    if (depth > deepest) refuse(folder, "folders inside each other too deep");
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      const fs::path path = entry->path(), name = prefix / path.filename();
      if (path.filename() == ".git" || path.filename() == ".cache" || path.extension() == ".scalevec-tmp")
        continue;
      const fs::file_status status = fs::symlink_status(path, error);
      if (fs::is_directory(status)) {
        list_folder(path, name, depth + 1);
        continue;
      }
      if (!fs::is_symlink(status) && !fs::is_regular_file(status))
        refuse(path, "it is neither file nor folder");
      items_.push_back({path, name, below(path, name), file_of(path), 0});
      warn_of_weights(items_.back());
    }
    if (error) refuse(folder, reason(error.value()));
  }

  void warn_of_weights(const Item& item) {
    static constexpr std::array<std::string_view, 8> weights = {".safetensors", ".bin", ".pt",      ".pth",
                                                                ".gguf",        ".h5",  ".msgpack", ".onnx"};
    const std::string kind = item.name.extension().string();
    if (item.file == no_tensors && std::find(weights.begin(), weights.end(), kind) != weights.end()) {
      report_.warnings.push_back(fmt::format(
          "'{}' was copied as it is: if it holds weights, they are not edited", item.name.string()));
    }
  }

  void measure() {
    for (Item& item : items_) {
      std::error_code error;
      item.size = fs::file_size(item.source, error);
      if (!error) total_ += item.size;
    }
  }

  void copy_into(const fs::path& folder, const Item& item) {
    const fs::path target = folder / item.name;
    std::error_code error;
    fs::create_directories(target.parent_path(), error);
    if (error)
      fail(ErrorCode::io, fmt::format("making '{}': {}", target.parent_path().string(), error.message()));
    int descriptor = ::open(target.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) {
      fail(ErrorCode::io, fmt::format("making '{}': {}", printable(target.string()), reason(errno)),
           {.file = target.string()});
    }
    try {
      copy(item, descriptor, target);
    } catch (...) {
      ::close(descriptor);
      throw;
    }
    if (::close(descriptor) != 0) {
      fail(ErrorCode::io, fmt::format("closing '{}': {}", printable(target.string()), reason(errno)),
           {.file = target.string()});
    }
  }

  // Copies, patches, syncs, and reads back.
  void copy(const Item& item, int descriptor, const fs::path& target) {
    const CopySource source = item.below.empty() ? CopySource(item.source) : CopySource(home_, item.below);
    source.copy_to(descriptor, target, [&](std::uint64_t bytes) {
      done_ += bytes;
      report(progress_, "copying", std::min(done_, total_), total_);
    });
    ++report_.files;
    report_.bytes += source.size();
    if (item.file != no_tensors) require_opened_file(item.file);
    for (const Patch& patch : patches_) {
      if (patch.tensor.file != item.file) continue;
      expect(descriptor, patch, patch.before, target);
      write_difference(descriptor, patch, target);
    }
    sync_file(descriptor, target);
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);  // so that what is read back comes from the disk
    for (const Patch& patch : patches_) {
      if (patch.tensor.file == item.file) expect(descriptor, patch, patch.after, target);
    }
  }

  // A read of the checkpoint says E_STATE if its file is no longer the one whose header was read.
  void require_opened_file(std::size_t file) const {
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (tensor.file != file || tensor.bytes == 0) continue;
      std::byte first{};
      checkpoint_.read(tensor, 0, std::span(&first, 1));
      return;
    }
  }

  void write_difference(int descriptor, const Patch& patch, const fs::path& target) {
    const std::size_t size = patch.after.size();
    for (std::size_t begin = 0; begin < size;) {
      if (patch.before[begin] == patch.after[begin]) {
        ++begin;
        continue;
      }
      std::size_t end = begin;
      while (end < size && patch.before[end] != patch.after[end]) ++end;
      write_all(descriptor, patch.tensor.begin + begin, std::span(patch.after).subspan(begin, end - begin),
                target);
      report_.bytes_changed += end - begin;
      begin = end;
    }
  }

  void expect(int descriptor, const Patch& patch, const std::vector<std::byte>& bytes,
              const fs::path& target) const {
    std::vector<std::byte> found(bytes.size());
    for (std::size_t done = 0; done < found.size();) {
      const ssize_t got = ::pread(descriptor, found.data() + done, found.size() - done,
                                  static_cast<off_t>(patch.tensor.begin + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        fail(ErrorCode::io,
             fmt::format("reading '{}' back: {}", printable(target.string()), reason(got < 0 ? errno : EIO)),
             {.file = target.string(), .tensor = patch.tensor.name, .offset = patch.tensor.begin + done});
      }
      done += static_cast<std::size_t>(got);
    }
    if (found == bytes) return;
    fail(ErrorCode::io,
         fmt::format("reading '{}' back: '{}' does not hold what was written; the disk or the memory is not "
                     "to be trusted",
                     printable(target.string()), printable(patch.tensor.name)),
         {.file = target.string(), .tensor = patch.tensor.name, .offset = patch.tensor.begin});
  }

  const Checkpoint& checkpoint_;
  const std::vector<Patch>& patches_;
  const Progress& progress_;
  ExportReport report_;
  fs::path home_;  // the model's folder, links resolved
  std::vector<Item> items_;
  std::uint64_t done_ = 0, total_ = 0;
};

}  // namespace

ExportReport write_patched_copy(const Checkpoint& checkpoint, const std::vector<Patch>& patches,
                                const fs::path& destination, const Progress& progress) {
  return Copier(checkpoint, patches, progress).run(destination);
}

}  // namespace scalevec
