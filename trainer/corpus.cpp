#include <scalevec/trainer/corpus.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/json_fields.h>
#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/sha256.h>
#include <scalevec/trainer/markov_chain.h>

namespace scalevec {

using nlohmann::json;

std::string_view split_name(Split split) { return split == Split::train ? "train" : "validation"; }

class Corpus::Source {
 public:
  virtual ~Source() = default;
  virtual std::int64_t vocabulary() const = 0;
  virtual std::int64_t ids(Split split) const = 0;
  virtual std::int64_t windows(Split split, std::int64_t context) const = 0;
  virtual std::string digest() const = 0;
  virtual void read(Split split, std::int64_t window, std::span<std::int64_t> ids) const = 0;
  virtual double entropy() const = 0;
  virtual double entropy(std::int64_t context) const = 0;
  virtual void verify(const Progress& progress) const = 0;
};

namespace {

constexpr std::string_view schema = "scalevec corpus 1";
constexpr std::int64_t most_ids = std::int64_t{1} << 60;
constexpr std::array splits{Split::train, Split::validation};

std::string digest_of(std::string_view text) {
  return "sha256:" + sha256_hex(std::as_bytes(std::span(text)));
}

class Folder final : public Corpus::Source {
 public:
  explicit Folder(const std::filesystem::path& folder) : folder_(folder) {
    if (std::error_code none; !std::filesystem::exists(folder / "corpus.json", none)) {
      fail(ErrorCode::path,
           "there is no corpus here: `scalevec data build TEXT... -o FOLDER` makes one of text; without one, "
           "what "
           "is trained on is a Markov chain",
           {.file = (folder / "corpus.json").string(), .expected = "a corpus"});
    }
    const SourceFile record = open("corpus.json");
    constexpr std::uint64_t largest = std::uint64_t{16} << 20;
    if (record.size() > largest) {
      fail(ErrorCode::limit, "the corpus is damaged: corpus.json is too large. Build it anew.",
           {.file = record.path().string(),
            .expected = fmt::format("at most {} bytes", largest),
            .found = fmt::format("{} bytes", record.size())});
    }
    std::string text(record.size(), '\0');
    record.read(0, std::as_writable_bytes(std::span(text)));
    const OwnJsonFile file{ErrorCode::schema, "the corpus", "Build it anew.", record.path().string()};
    const json root = parse_json(text, file.path);

    const JsonFields fields(root, file, "");
    if (const std::string found = fields.text("schema"); found != schema)
      fields.refuse("schema", fmt::format("\"{}\" (a newer scalevec may have written it)", schema), found);
    fields.exactly({"schema", "tool", "vocabulary", "end", "dtype", "tokenizer", "splits", "validation_share",
                    "sources", "skipped", "digest"});
    vocabulary_ = fields.integer("vocabulary", 1, std::numeric_limits<std::int32_t>::max());
    const std::int64_t end = fields.integer("end", 0, vocabulary_ - 1);
    width_ = vocabulary_ <= 65'536 ? 2 : 4;
    const std::string dtype = width_ == 2 ? "uint16" : "uint32";
    if (fields.text("dtype") != dtype) fields.refuse("dtype", dtype, fields.text("dtype"));
    tokenizer_digest_ = fields.fields("tokenizer").exactly({"sha256", "trained_on_bytes"}).digest("sha256");
    const JsonFields of_splits = fields.fields("splits").exactly({"train", "validation"});
    for (const Split split : splits) {
      const std::string name(split_name(split));
      const JsonFields of = of_splits.fields(name).exactly({"documents", "bytes", "ids", "sha256"});
      Part& part = this->part(split);
      part.ids = of.integer("ids", 0, most_ids);
      part.digest = of.digest("sha256");
      part.file = std::make_unique<SourceFile>(open(name + ".bin"));
      const auto bytes = static_cast<std::uint64_t>(part.ids) * width_;
      if (part.file->size() != bytes) {
        fail(ErrorCode::size,
             fmt::format("the corpus is damaged: '{}' has {} bytes, but {} ids of {} bytes were written. "
                         "Build it anew.",
                         name + ".bin", part.file->size(), part.ids, width_),
             {.file = part.file->path().string(),
              .expected = fmt::format("{} bytes", bytes),
              .found = fmt::format("{} bytes", part.file->size())});
      }
    }
    digest_ = digest_of(fmt::format(
        "{}\nvocabulary {}\nend {}\ntokenizer {}\ntrain {} {}\nvalidation {} {}\n", schema, vocabulary_, end,
        tokenizer_digest_, parts_[0].ids, parts_[0].digest, parts_[1].ids, parts_[1].digest));
    if (const std::string said = fields.digest("digest"); said != digest_) {
      fail(ErrorCode::state, "the corpus is damaged: its fields are not those of its digest. Build it anew.",
           {.file = file.path, .key = "digest", .expected = said, .found = digest_});
    }
  }

  std::int64_t vocabulary() const override { return vocabulary_; }
  std::int64_t ids(Split split) const override { return part(split).ids; }
  std::int64_t windows(Split split, std::int64_t context) const override {
    return std::max<std::int64_t>(ids(split) - 1, 0) / context;
  }
  std::string digest() const override { return digest_; }

  void read(Split split, std::int64_t window, std::span<std::int64_t> ids) const override {
    std::vector<std::byte> bytes(ids.size() * width_);
    const auto first = static_cast<std::uint64_t>(window) * (ids.size() - 1) * width_;
    const SourceFile& file = *part(split).file;
    file.read(first, bytes);
    decode(bytes, ids);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < vocabulary_) continue;
      fail(ErrorCode::format, fmt::format("the corpus is damaged: id {} is no token. Build it anew.", ids[i]),
           {.file = file.path().string(),
            .offset = first + i * width_,
            .expected = fmt::format("an id below {}", vocabulary_),
            .found = fmt::format("{}", ids[i])});
    }
  }

  double entropy() const override { return std::numeric_limits<double>::quiet_NaN(); }
  double entropy(std::int64_t) const override { return entropy(); }

  void verify(const Progress& progress) const override {
    std::uint64_t done = 0, total = 0;
    const SourceFile tokenizer = open("tokenizer.json");
    const std::array<std::pair<const SourceFile*, const std::string*>, 3> files{{
        {part(Split::train).file.get(), &part(Split::train).digest},
        {part(Split::validation).file.get(), &part(Split::validation).digest},
        {&tokenizer, &tokenizer_digest_},
    }};
    for (const auto& [file, digest] : files) total += file->size();
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    for (const auto& [file, digest] : files) {
      Sha256 hash;
      for (std::uint64_t at = 0; at < file->size();) {
        const std::size_t count = std::min<std::uint64_t>(buffer.size(), file->size() - at);
        const std::span<std::byte> bytes = std::span(buffer).first(count);
        file->read(at, bytes);
        hash.update(bytes);
        at += count;
        report(progress, "verifying the corpus", done += count, total);
      }
      if (const std::string found = "sha256:" + hash.hex(); found != *digest) {
        fail(ErrorCode::state,
             "the corpus is damaged: a file is not the one that was written. Build it anew.",
             {.file = file->path().string(), .expected = *digest, .found = found});
      }
    }
  }

 private:
  struct Part {
    std::int64_t ids = 0;
    std::string digest;
    std::unique_ptr<SourceFile> file;
  };

  // A folder may itself be a link; what is in it was written there.
  SourceFile open(std::string_view name) const { return SourceFile::inside(folder_, name, false); }
  Part& part(Split split) { return parts_[static_cast<std::size_t>(split)]; }
  const Part& part(Split split) const { return parts_[static_cast<std::size_t>(split)]; }

  void decode(std::span<const std::byte> bytes, std::span<std::int64_t> ids) const {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      std::uint32_t id = 0;
      for (std::size_t k = 0; k < width_; ++k)
        id |= std::to_integer<std::uint32_t>(bytes[i * width_ + k]) << 8 * k;
      ids[i] = id;
    }
  }

  std::filesystem::path folder_;
  std::int64_t vocabulary_ = 0;
  std::size_t width_ = 2;
  std::string tokenizer_digest_, digest_;
  std::array<Part, 2> parts_;
};

class Drawn final : public Corpus::Source {
 public:
  explicit Drawn(const SyntheticSource& source)
      : chain_(source.vocabulary, source.order, source.concentration, source.seed),
        ids_{source.train_ids, source.validation_ids},
        digest_(digest_of(fmt::format(
            "scalevec synthetic 1\nseed {}\ntrain {}\nvalidation {}\norder {}\nchain {}\n", source.seed,
            source.train_ids, source.validation_ids, source.order, chain_.digest()))) {
    for (const Split split : splits) {
      if (ids(split) >= 0 && ids(split) <= most_ids) continue;
      fail(ErrorCode::value,
           fmt::format("synthetic source: {} ids of the {} split", ids(split), split_name(split)),
           {.expected = fmt::format("0 to {}", most_ids), .found = fmt::format("{}", ids(split))});
    }
  }

  std::int64_t vocabulary() const override { return chain_.vocabulary(); }
  std::int64_t ids(Split split) const override { return ids_[static_cast<std::size_t>(split)]; }
  std::int64_t windows(Split split, std::int64_t context) const override {
    return ids(split) / (context + 1);
  }
  std::string digest() const override { return digest_; }
  void read(Split split, std::int64_t window, std::span<std::int64_t> ids) const override {
    const std::uint64_t of_split = split == Split::train ? 0 : std::uint64_t{1} << 62;
    chain_.sample(of_split | static_cast<std::uint64_t>(window), ids);
  }
  double entropy() const override { return chain_.entropy(); }
  double entropy(std::int64_t context) const override { return chain_.entropy(context); }
  void verify(const Progress&) const override {}

 private:
  MarkovChain chain_;
  std::array<std::int64_t, 2> ids_;
  std::string digest_;
};

void require_context(std::int64_t context) {
  constexpr std::int64_t most = std::int64_t{1} << 24;
  if (context >= 1 && context <= most) return;
  fail(ErrorCode::value, fmt::format("windows of a corpus: the context is {}", context),
       {.expected = fmt::format("1 to {}", most), .found = fmt::format("{}", context)});
}

}  // namespace

Corpus::Corpus(std::shared_ptr<const Source> source) : source_(std::move(source)) {}

Corpus Corpus::open(const std::filesystem::path& folder) { return Corpus(std::make_shared<Folder>(folder)); }
Corpus Corpus::synthetic(const SyntheticSource& source) { return Corpus(std::make_shared<Drawn>(source)); }

std::int64_t Corpus::vocabulary() const { return source_->vocabulary(); }
std::int64_t Corpus::ids(Split split) const { return source_->ids(split); }
std::string Corpus::digest() const { return source_->digest(); }
double Corpus::entropy() const { return source_->entropy(); }
void Corpus::verify(const Progress& progress) const { source_->verify(progress); }

double Corpus::entropy(std::int64_t context) const {
  require_context(context);
  return source_->entropy(context);
}

std::int64_t Corpus::windows(Split split, std::int64_t context) const {
  require_context(context);
  return source_->windows(split, context);
}

at::Tensor Corpus::read(Split split, std::span<const std::int64_t> windows, std::int64_t context) const {
  const std::int64_t count = this->windows(split, context);
  for (const std::int64_t window : windows) {
    if (window >= 0 && window < count) continue;
    fail(ErrorCode::value,
         fmt::format("reading a corpus: there is no window {} of {} ids in the {} split", window, context,
                     split_name(split)),
         {.index = window, .expected = fmt::format("below {}", count), .found = fmt::format("{}", window)});
  }
  const auto width = static_cast<std::size_t>(context) + 1;
  at::Tensor ids =
      ops::empty({static_cast<std::int64_t>(windows.size()), context + 1}, at::TensorOptions(at::kLong));
  std::int64_t* row = ids.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t window : windows) {
    source_->read(split, window, {row, width});
    row += width;
  }
  return ids;
}

}  // namespace scalevec
