#include <scalevec/hooks/gradient_hooks.h>

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <ATen/core/grad_mode.h>

namespace scalevec {

// torch keeps an empty place for every hook that is taken off a tensor, for as long as the tensor lives. So a
// leaf gets one hook, which stays and owns this, and whoever comes and goes does so here.
class GradientHooks::Leaf {
 public:
  static std::shared_ptr<Leaf> of(const at::Tensor& tensor) {
    std::shared_ptr<Leaf> leaf;  // goes, if it must, after the lock
    const std::lock_guard lock(all_mutex());
    std::weak_ptr<Leaf>& known = all()[tensor.unsafeGetTensorImpl()];
    leaf = known.lock();
    if (!leaf) {
      leaf = std::make_shared<Leaf>(tensor.unsafeGetTensorImpl());
      tensor.register_hook([leaf](const at::Tensor& gradient) {
        if (gradient.defined()) leaf->pass_on(gradient.detach());
      });
      known = leaf;
    }
    return leaf;
  }

  explicit Leaf(const at::TensorImpl* tensor) : tensor_(tensor) {}
  Leaf(const Leaf&) = delete;
  Leaf& operator=(const Leaf&) = delete;
  ~Leaf() {
    const std::lock_guard lock(all_mutex());
    // By now another tensor may have the address, and a Leaf.
    if (const auto found = all().find(tensor_); found != all().end() && found->second.expired())
      all().erase(found);
  }

  std::uint64_t add(Receive receive) {
    const std::lock_guard lock(mutex_);
    receivers_.emplace(++last_, std::make_shared<Receive>(std::move(receive)));
    return last_;
  }
  void remove(std::uint64_t key) noexcept {
    const std::lock_guard lock(mutex_);
    receivers_.erase(key);
  }

 private:
  void pass_on(const at::Tensor& gradient) {
    std::vector<std::shared_ptr<Receive>> now;  // one of them may take itself off, or another
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [key, receive] : receivers_) now.push_back(receive);
    }
    for (const auto& receive : now) (*receive)(gradient);
  }

  // Never destroyed: tensors may outlive what is.
  static std::unordered_map<const at::TensorImpl*, std::weak_ptr<Leaf>>& all() {
    static auto& leaves = *new std::unordered_map<const at::TensorImpl*, std::weak_ptr<Leaf>>;
    return leaves;
  }
  static std::mutex& all_mutex() {
    static auto& mutex = *new std::mutex;
    return mutex;
  }

  const at::TensorImpl* tensor_;
  std::mutex mutex_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Receive>> receivers_;
};

bool GradientHooks::add(const at::Tensor& tensor, Receive receive) {
  if (!at::GradMode::is_enabled() || !tensor.defined() || !tensor.requires_grad()) return false;
  if (tensor.is_leaf()) {
    leaves_.reserve(leaves_.size() + 1);
    std::shared_ptr<Leaf> leaf = Leaf::of(tensor);
    const std::uint64_t key = leaf->add(std::move(receive));
    leaves_.push_back({tensor, std::move(leaf), key});
  } else {
    tensor.register_hook([receive = std::move(receive)](const at::Tensor& gradient) {
      if (gradient.defined()) receive(gradient.detach());
    });
  }
  return true;
}

void GradientHooks::clear() noexcept {
  for (const OnLeaf& each : leaves_) each.leaf->remove(each.key);
  leaves_.clear();
}

}  // namespace scalevec
